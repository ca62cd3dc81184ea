"""What the kernels are worth: ops against the byte bound and the plain composition, modules, a training step, tiny calls.

    python -m benchmarks.foundation [--device cuda]

On the CPU two threads; on a machine with more cores the rest stays idle. `--only` writes the sections named, and nothing
else, to `--out`; `--tiny` rehearses all of them in little time.
"""

import argparse
import copy
import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import OPS, ORDERS, PLANS, TINY_SHAPE, Op, Plan, Shape
from benchmarks.harness import (
    Contestant,
    Row,
    copying,
    describe,
    keep_freed_memory,
    peak_bytes,
    save,
    speedup,
    start_report,
    trial,
    worst_error,
)
from lada_kernels import info, use_backend
from lada_kernels.modules import LadaAttention
from lada_kernels.training.config import Config
from lada_kernels.training.loop import Trainer

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# D's loss and gradients after a whole step, against the official composition in float32; G's fakes go through 16 bits.
STEP_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}


def make_inputs(kinds: str, shape: Shape, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    batch, tokens, channels, heads = shape
    sizes = {"t": (batch, tokens, channels), "c": (batch, channels), "w": (heads, channels)}
    draw = [torch.randn(sizes[kind], device=device) * (0.05 if kind == "w" else 1.0) for kind in kinds]
    return [x.to(dtype).requires_grad_() for x in draw]


def widened(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().double().requires_grad_() for x in tensors]


def at_order(
    order: str, function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor, cotangents: list[Tensor]
) -> Contestant:
    """A call that computes one order of the function through public autograd; what comes before is computed here, once."""
    if order == "forward":

        def forward() -> tuple[Tensor]:
            with torch.no_grad():
                return (function(*inputs),)

        return forward
    out = function(*inputs)
    if order == "backward":
        return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)
    first = torch.autograd.grad(out, inputs, grad, create_graph=True)
    # A norm's beta has no second gradient.
    return lambda: torch.autograd.grad(first, [grad, *inputs], cotangents, retain_graph=True, allow_unused=True)


def error_of(op: Op, order: str, shape: Shape, dtype: torch.dtype, device: str, inputs: list[Tensor] | None = None) -> float:
    """How far one order of an op is from its plain twin in float64."""
    inputs = inputs or make_inputs(op.inputs, shape, dtype, device)
    grad, cotangents = make_cotangents(op, inputs)
    truth = at_order(order, op.plain, widened(inputs), *widened([grad]), [x.double() for x in cotangents])()
    return worst_error(at_order(order, op.ours, inputs, grad, cotangents)(), truth)


def make_cotangents(op: Op, inputs: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    return torch.randn_like(op.ours(*inputs)).requires_grad_(), [torch.randn_like(x) for x in inputs]


def time_op(name: str, shape: Shape, dtype: torch.dtype, repeats: int, plan: Plan) -> Iterator[Row]:
    """All three orders of an op beside its plain twin and beside a copy of as many bytes as the order must move.

    On a GPU also beside the plain twin under torch.compile, which has no second order.
    """
    op, device = OPS[name], plan.device
    torch.manual_seed(0)
    inputs = make_inputs(op.inputs, shape, dtype, device)
    grad, cotangents = make_cotangents(op, inputs)
    batch, tokens, channels, heads = shape
    whole = batch * tokens * channels <= plan.largest_truth
    part = shape if whole else (min(batch, 2), min(tokens, 4096), channels, heads)
    compiled = None if device == "cpu" else torch.compile(op.plain, fullgraph=True)
    for order, units in zip(ORDERS, op.units, strict=True):
        moved = units * batch * tokens * channels * dtype.itemsize
        error = error_of(op, order, part, dtype, device, inputs if whole else None)
        contestants = {
            "ours": at_order(order, op.ours, inputs, grad, cotangents),
            "plain": at_order(order, op.plain, inputs, grad, cotangents),
            "copy": copying(moved, device),
        }
        if compiled and order != ORDERS[-1]:
            contestants["compiled"] = at_order(order, compiled, inputs, grad, cotangents)
        case = {"op": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "order": order}
        row = trial("ops", case, contestants, error, TOLERANCES[dtype], repeats, device=device)
        if not row.refused:
            row.figures = {
                "bytes": moved,
                "GB/s": moved / row.times["ours"].median / 1e9,
                "share": speedup(row, "ours", "copy"),
                "speedup": speedup(row, "ours", "plain"),
                "plain/bound": speedup(row, "copy", "plain"),
            }
            if "compiled" in contestants:
                row.figures["over compiled"] = speedup(row, "ours", "compiled")
            if device != "cpu":
                row.figures |= {f"peak bytes {who}": peak_bytes(contestants[who], device) for who in ("ours", "plain")}
        yield row


def ops(plan: Plan, repeats: int = 31) -> Iterator[Row]:
    for name, shape, dtype in plan.ops:
        yield from time_op(name, shape, dtype, repeats, plan)


def first_order(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The output and every gradient, of x too."""
    out = module(x)
    return out, *torch.autograd.grad(out, [x, *module.parameters()], grad)


def r1_step(module: nn.Module, x: Tensor, _: Tensor) -> list[Tensor | None]:
    """The gradients of a gradient penalty, as R1 takes them."""
    leaves = [x, *module.parameters()]
    for leaf in leaves:
        leaf.grad = None
    (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    return [leaf.grad for leaf in leaves]


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """What one forward keeps for its backward, parameters aside: the sizes of the distinct storages."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    del out  # kept until here, so that no storage was freed and its address used again
    return sum(saved.values())


def time_module(shape: Shape, repeats: int, device: str = "cpu", heads: int = 4) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = LadaAttention(shape[2], heads).to(device)
    plain = peers.PlainAttention(ours)
    x, grad = torch.randn(shape, device=device).requires_grad_(), torch.randn(shape, device=device)
    true_module, (true_x,) = peers.PlainAttention(copy.deepcopy(ours).double()), widened([x])
    for task, run in (("forward+backward", first_order), ("R1", r1_step)):
        contestants = {"ours": partial(run, ours, x, grad), "plain": partial(run, plain, x, grad)}
        error = worst_error(contestants["ours"](), run(true_module, true_x, grad.double()))
        case = {"module": "LadaAttention", "shape": list(shape), "task": task}
        row = trial("modules", case, contestants, error, 1e-4, repeats, device=device)
        if not row.refused:
            row.figures["speedup"] = speedup(row, "ours", "plain")
            if run is first_order:
                kept = {"saved_bytes": saved_bytes(ours, x), "plain_saved_bytes": saved_bytes(plain, x)}
                row.figures |= kept | {"saved": kept["saved_bytes"] / kept["plain_saved_bytes"]}
        yield row


def modules(plan: Plan, repeats: int = 31) -> Iterator[Row]:
    for shape in plan.modules:
        yield from time_module(shape, repeats, plan.device)


def d_step(contestant: Trainer | peers.OfficialStep) -> list[Tensor]:
    """D's loss and all its gradients as one vector, from a whole step under one seed: equal latents and augmentation."""
    torch.manual_seed(1)
    result = contestant.step()
    if isinstance(contestant, Trainer):
        d_loss, _, r1, *_ = result
        result = d_loss + contestant.config.optim.r1 * r1
    # The G step leaves D's gradients alone.
    return [result, torch.cat([p.grad.flatten() for p in contestant.discriminator.parameters()])]


def time_step(config: Config, repeats: int) -> Iterator[Row]:
    """A training step in every precision and layout, against the official composition in float32."""
    size, batch = config.model.img_size, config.optim.batch_size
    images = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def trainer(precision: str, channels_last: bool) -> Trainer:
        run = dataclasses.replace(config.run, precision=precision, channels_last=channels_last)
        return Trainer(dataclasses.replace(config, run=run), images)

    variants = [(precision, layout) for precision in STEP_TOLERANCES for layout in (False, True)]
    names = [precision + (" channels_last" if layout else "") for precision, layout in variants]
    ours = {name: trainer(*variant) for name, variant in zip(names, variants, strict=True)}
    official = peers.OfficialStep(ours["float32"])
    # Tells what autocast is worth from what the kernels are: our loop, plain modules.
    plain = trainer("bfloat16", False)
    for model in (plain.generator, plain.discriminator, plain.ema):
        peers.make_plain(model)
    truth = d_step(official)
    errors = {name: worst_error(d_step(contestant), truth) for name, contestant in ours.items()}
    tolerances = {name: STEP_TOLERANCES[name.split()[0]] for name in names}
    worst = max(names, key=lambda name: errors[name] / tolerances[name])
    contestants = {"official": official, **ours, "plain bfloat16": plain}
    calls = {name: contestant.step for name, contestant in contestants.items()}
    case = {"step": "LadaGAN", "pixels": size, "batch": batch}
    row = trial("step", case, calls, errors[worst], tolerances[worst], repeats, warmup=1, device=config.run.device)
    row.figures = {f"error {name}": error for name, error in errors.items() if math.isfinite(error)}
    if not row.refused:
        row.figures |= {f"images/s {name}": batch / timing.median for name, timing in row.times.items()}
        row.figures |= {f"speedup {name}": speedup(row, name, "official") for name in calls if name != "official"}
        for precision in STEP_TOLERANCES:
            layouts = (precision, f"{precision} channels_last")
            row.figures[f"better in {precision}"] = min(layouts, key=lambda name: row.times[name].median)
    yield row


def step(plan: Plan, repeats: int = 11) -> Iterator[Row]:
    yield from time_step(plan.step, repeats)


def overhead(plan: Plan, repeats: int = 61) -> Iterator[Row]:
    """A call, gradients recorded, on tensors so small that only its fixed cost is left: 100 in a row, as a loop makes them."""
    torch.manual_seed(0)
    device = plan.device
    folded = LadaAttention(TINY_SHAPE[2], TINY_SHAPE[3]).to(device)
    unfolded = copy.deepcopy(folded)
    unfolded.fold_query = False
    calls = {name: (op.ours, op.plain, make_inputs(op.inputs, TINY_SHAPE, torch.float32, device)) for name, op in OPS.items()}
    (x,) = make_inputs("t", TINY_SHAPE, torch.float32, device)
    calls |= {
        "LadaAttention": (folded, peers.PlainAttention(folded), [x]),
        "LadaAttention, not folded": (unfolded, peers.PlainAttention(unfolded), [x]),
    }
    for name, (ours, plain, inputs) in calls.items():
        contestants = {"ours": partial(ours, *inputs), "plain": partial(plain, *inputs)}
        true_plain = copy.deepcopy(plain).double() if isinstance(plain, nn.Module) else plain
        error = worst_error([ours(*inputs)], [true_plain(*widened(inputs))])
        case, in_a_row = {"call": name, "shape": list(TINY_SHAPE)}, 1 if plan.repeats else 100
        row = trial("overhead", case, contestants, error, 1e-5, repeats, warmup=2 * in_a_row, calls=in_a_row, device=device)
        if not row.refused:
            row.figures["speedup"] = speedup(row, "ours", "plain")
        yield row


# Tiny calls first, before the others have filled the heap.
SECTIONS: dict[str, Callable[..., Iterator[Row]]] = {"overhead": overhead, "ops": ops, "modules": modules, "step": step}


def run(
    out: Path | None = None,
    repeats: int | None = None,
    only: str = ",".join(SECTIONS),
    device: str = "cpu",
    backend: str | None = None,
    tiny: bool = False,
    default_allocator: bool = False,
) -> int:
    """Time the kernels, on the CPU in two threads; non-zero when a result was wrong. `main` says what the arguments mean."""
    names = only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise SystemExit(f"--only: unknown section {unknown[0]!r}, expected some of {','.join(SECTIONS)}")
    out = out or Path(f"benchmarks/results/{device}-foundation.json")
    plan = PLANS["tiny" if tiny else device](device)
    allocator = "the system's default, by request" if default_allocator else keep_freed_memory()
    torch.set_num_threads(2)
    # sys.argv[0] would tell where this checkout lies.
    report = start_report(shlex.join(["python", "-m", "benchmarks.foundation", *sys.argv[1:]]), allocator)
    print(f"{info.describe(report.machine)}\n\nallocator: {allocator}")
    with use_backend(backend or ("cpu" if device == "cpu" else "triton")):
        for name in names:
            print(f"\n{name}")
            wanted = plan.repeats if repeats is None else repeats
            options: dict[str, Any] = {} if wanted is None else {"repeats": wanted}
            try:
                for row in SECTIONS[name](plan, **options):
                    report.rows.append(row)
                    print(describe(row), flush=True)
                report.sections.append(name)
            finally:
                save(report, out)
    print(f"\nwritten to {out}")
    return int(any(row.refused for row in report.rows))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.foundation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write (benchmarks/results/DEVICE-foundation.json)")
    parser.add_argument(
        "--repeats", type=int, help="readings of each contestant (31; training steps 11; tiny calls 61 times 100)"
    )
    parser.add_argument(
        "--only", default=",".join(SECTIONS), help="sections to run; the file will hold no others (%(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors are (%(default)s)")
    parser.add_argument("--backend", help="who computes (cpu on the CPU, triton on a GPU)")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the smallest sizes, whose times mean nothing")
    parser.add_argument(
        "--default-allocator", action="store_true", help="leave the CPU's allocator alone: fresh outputs with their page faults"
    )
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
