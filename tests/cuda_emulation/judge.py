"""Judge ops on emulated CUDA kernels with sanitizers, in a process of its own: python -m cuda_emulation.judge OP...

It wants the environment of `build.preload`. --kernel FILE: with that file in the place of the kernel of its name.
"""

import argparse
import functools
import itertools
from pathlib import Path

import problems
import torch
from cuda_emulation import build

from lada_kernels import use_backend
from lada_kernels.backends.cuda import launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("dense", "misaligned", "third")  # the two paths to memory, and rows with something between them
# Seed by seed, the shared memory of an H100 or of an L40S, where some problems' usual form does not fit.
SHARED = (232448, 232448, 101376)
WIDE = (problems.Problem(2, 9, 1024, 8, mask="random"), problems.Problem(1, 7, 4096, 4))
WHOLE = (  # for the pool alone
    problems.Problem(2, 33, 24, 3, per_head=False),
    problems.Problem(1, 40, 1024, 8, per_head=False, mask="random"),
    problems.Problem(2, 11, 6, 9, per_head=False),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ops", nargs="+", choices=[op.name for op in problems.OPS])
    parser.add_argument("--kernel", type=Path)
    arguments = parser.parse_args()
    sources = build.changed(arguments.kernel) if arguments.kernel else build.SOURCES
    build.stand_in(functools.partial(build.load, sources, sanitize=True))
    judged = 0
    with use_backend("cuda"):
        for seed, clusters in itertools.product(range(3), (True, False)):
            launch.kernels.configure(seed=seed, clusters=clusters, shared=SHARED[seed])
            for i, problem in enumerate((*problems.SHAPES, *WIDE, *WHOLE)):
                dtype, layout = DTYPES[(i + seed) % 3], LAYOUTS[(i + 2 * seed + clusters) % 3]
                for op in problems.OPS:
                    if op.name in arguments.ops and (op is problems.POOL or problem not in WHOLE):
                        problems.judge(op, problem, dtype, layout=layout, grad_layout=layout)
                        judged += 1
    print(f"judged {judged} problems")


if __name__ == "__main__":
    main()
