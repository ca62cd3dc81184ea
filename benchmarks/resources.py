"""What every Triton kernel needs of a GPU, read from the cubins that are compiled for it; no GPU takes part.

    python -m benchmarks.resources

The ops' entry points run on tensors without data; what they would launch is compiled instead, for every architecture.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The compiler, not the interpreter; read where a kernel is decorated.
os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lada_kernels.backends.triton import kernels, launch
from lada_kernels.reference.precision import accumulate_dtype

# Compute capability -> shared memory that a program can have, in bytes (CUDA C++ Programming Guide, table of technical
# specifications per compute capability).
ARCHITECTURES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
PROCESSORS = 132
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TABLE = Path("docs/triton-resources.md")

BATCH, TOKENS = 64, 1024
CHANNELS = (64, 256, 1024, 2048)
THOROUGH = 256
DTYPES = (torch.bfloat16, torch.float32)
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel as one launch specialises it, by name, so that it can be sent to another process."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    warps: int


@dataclass(frozen=True)
class Resources:
    """Registers and bytes of spills a thread, how often its innermost loops touch spills, bytes of shared memory a program."""

    registers: int
    spills: int
    looped_spills: int
    shared: int
    wide_loads: int
    wide_stores: int


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Have launches written down instead of started."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: Sequence[int], *details: Any) -> None:
        launch_ = specialise(kernel, *details)
        if launch_ not in launches:
            launches.append(launch_)

    before = launch.hand_over, launch.processors
    launch.hand_over, launch.processors = note, lambda device: PROCESSORS
    try:
        yield launches
    finally:
        launch.hand_over, launch.processors = before


def specialise(kernel: Any, args: Sequence[Any], warps: int, constants: dict[str, Any]) -> Launch:
    """As Triton does at a call: None and 1 become constants; what 16 divides is known to be so."""
    signature, fixed, divisible = {}, dict(constants), []
    for index, (name, arg) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if arg is None or (type(arg) is int and arg == 1):
            signature[name], fixed[name] = "constexpr", arg
        elif isinstance(arg, Tensor):
            signature[name] = "*" + TYPES[arg.dtype]
            divisible.append(index)  # as torch allocates
        elif isinstance(arg, float):
            signature[name] = "fp32"
        elif isinstance(arg, bool):
            signature[name] = "i1"
        else:
            signature[name] = "i32" if -(2**31) <= arg < 2**31 else "i64"
            divisible += [index] if arg % 16 == 0 else []
    signature |= dict.fromkeys(constants, "constexpr")
    ordered = tuple((name, signature[name]) for name in kernel.arg_names)
    return Launch(kernel.__module__, kernel.__name__, ordered, tuple(sorted(fixed.items())), tuple(divisible), warps)


def compiled(wanted: Launch, capability: int) -> Any:
    """What Triton makes of a launch for a compute capability."""
    kernel = getattr(sys.modules.get(wanted.module) or __import__(wanted.module, fromlist=["_"]), wanted.kernel)
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": wanted.warps}
    return triton.compile(_source(kernel, wanted), target=target, options=options)


def _source(kernel: Any, wanted: Launch) -> ASTSource:
    signature, constants = dict(wanted.signature), dict(wanted.constants)
    if "constexprs" in inspect.signature(ASTSource).parameters:
        return ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in wanted.divisible})
    # Before Triton 3.3 constants were no part of a signature, and attributes had a class.
    attributes = triton.backends.compiler.AttrsDescriptor.from_hints(dict.fromkeys(wanted.divisible, 16))
    return ASTSource(kernel, {name: kind for name, kind in signature.items() if kind != "constexpr"}, constants, attributes)


def resources(job: tuple[Launch, int]) -> Resources:
    """Compile for a compute capability and read the cubin."""
    wanted, capability = job
    binary = compiled(wanted, capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        sass = _cuobjdump("-sass", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump said nothing of {wanted.kernel}: {usage}")
    registers, stack, local = map(int, found.groups())
    wide = [len(re.findall(pattern, sass)) for pattern in (r"\bLDG\.E(?:\.\w+)*\.128", r"\bSTG\.E(?:\.\w+)*\.128")]
    return Resources(registers, stack + local, looped_spills(sass), binary.metadata.shared, *wide)


def looped_spills(sass: str) -> int:
    """How many loads and stores of spilled registers the innermost loops of this machine code hold.

    ptxas spills a few registers around a loop where that lets one more program run beside the others: that costs nothing.
    """
    code = [(int(at, 16), instruction) for at, instruction in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.*?);", sass)]
    jumps = [(int(to, 16), at) for at, instruction in code for to in re.findall(r"\bBRA\b.* 0x([0-9a-f]+)", instruction)]
    loops = [(to, at) for to, at in jumps if to < at]
    innermost = [loop for loop in loops if not any(loop[0] <= to and at <= loop[1] for to, at in loops if (to, at) != loop)]
    spills = [at for at, instruction in code if re.search(r"\b(LDL|STL)\b", instruction)]
    return sum(first <= at <= last for first, last in innermost for at in spills)


def _name_failure(job: tuple[Launch, int]) -> Resources:
    try:
        return resources(job)
    except Exception as error:
        raise RuntimeError(f"{job[0].module}.{job[0].kernel} for sm_{job[1]}, {dict(job[0].constants)}: {error}") from None


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([TOOLS / "cuobjdump", option, path], capture_output=True, text=True, check=True).stdout


def architectures() -> list[int]:
    """Those that an assembler of this Triton knows."""
    helps = [subprocess.run([tool, "--help"], capture_output=True, text=True).stdout for tool in TOOLS.glob("ptxas*")]
    return [capability for capability in ARCHITECTURES if any(f"'sm_{capability}'" in text for text in helps)]


def every_launch(channels: Sequence[int] = CHANNELS, dtypes: Sequence[torch.dtype] = DTYPES) -> list[Launch]:
    """What all ops would launch, in all orders; for one width also with more heads, a mask and whole batch elements."""
    with recorded() as launches:
        for dtype in dtypes:
            for width in channels:
                for batch, heads in ((BATCH, 4), (BATCH, 8), (2048, 8)) if width == THOROUGH else ((BATCH, 4),):
                    for run in _ops(batch, width, heads, dtype):
                        run()
    return launches


def _ops(batch: int, width: int, heads: int, dtype: torch.dtype) -> Iterator[Callable[[], Any]]:
    wide = accumulate_dtype(dtype)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x, channels, weight = empty(batch, TOKENS, width), empty(batch, width), empty(heads, width)
    normaliser, mask = empty(batch, heads, 2, dtype=wide), empty(batch, TOKENS, dtype=torch.bool)
    pool = kernels("additive_pool")
    for per_head in (True, False):
        pooled = empty(batch, heads, width // heads if per_head else width, dtype=wide)
        for hidden in (None, mask) if width == THOROUGH else (None,):
            saved = (x, weight, hidden, pooled, normaliser, 1.5, per_head)
            yield lambda hidden=hidden, per_head=per_head: pool.forward(x, weight, hidden, 1.5, per_head, False)
            yield lambda pooled=pooled, saved=saved: pool.backward([True] * 2, pooled, *saved)
            yield lambda pooled=pooled, saved=saved: pool.double_backward([True] * 3, x, weight, pooled, *saved)
    gate = kernels("gated_product")
    yield lambda: gate.forward(channels, x, x)
    yield lambda: gate.backward([True] * 3, x, channels, x, x)
    yield lambda: gate.double_backward([True] * 4, channels, x, x, x, channels, x, x)
    attention, pooled = kernels("additive_attention"), empty(batch, heads, width // heads, dtype=wide)
    saved = (x, x, x, weight, None, pooled, normaliser)
    yield lambda: attention.forward(x, x, x, weight, None, 1.5, False)
    yield lambda: attention.backward([True] * 4, x, *saved, 1.5)
    yield lambda: attention.double_backward([True] * 5, x, x, x, weight, x, *saved, pooled, 1.5)
    project = kernels("gated_projection")
    yield lambda: project.forward(x, channels, empty(2 * width, width), empty(2 * width), None, None)
    if width <= 128:
        yield lambda: project.forward(x, channels, empty(2 * width, width), empty(2 * width), empty(width, width), empty(width))
    norm, rows = kernels("modulated_layer_norm"), empty(batch, TOKENS, dtype=wide)
    yield lambda: norm.forward(x, channels, channels, 1e-6)
    yield lambda: norm.backward([True] * 3, x, x, channels, rows, rows)
    yield lambda: norm.double_backward([True] * 3, x, channels, channels, x, x, channels, rows, rows)


def measure(launches: Sequence[Launch], capabilities: Sequence[int]) -> dict[Launch, list[Resources]]:
    """The resources of every launch for every compute capability, compiled on all cores."""
    jobs = [(wanted, capability) for wanted in launches for capability in capabilities]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(pool.map(_name_failure, jobs, chunksize=4))
    width = len(capabilities)
    return {wanted: found[i * width : (i + 1) * width] for i, wanted in enumerate(launches)}


def table(found: dict[Launch, list[Resources]], capabilities: Sequence[int]) -> str:
    """Markdown: a line for every kernel as it is specialised, registers/spilled bytes/shared bytes for every architecture."""
    heads = [f"sm_{capability}" for capability in capabilities]
    lines = [
        "# What each Triton kernel needs of a GPU",
        "",
        f"Written by `python -m benchmarks.resources` with Triton {triton.__version__} and its ptxas, from the cubins of what",
        f"the ops launch at N = {TOKENS} and D = {', '.join(map(str, CHANNELS))}; no GPU took part. Each column: registers a",
        "thread, bytes of spills a thread, bytes of shared memory a program, 16-byte loads + stores in the code. Around",
        "a loop ptxas spills a little where that lets one more program run beside the others; within, it must not.",
        "",
        f"| kernel | types | tile | warps | {' | '.join(heads)} |",
        "|---|---|---|---|" + "---|" * len(heads),
    ]
    for wanted, columns in found.items():
        types = ", ".join(sorted({kind[1:] for _, kind in wanted.signature if kind.startswith("*")}))
        tile = ", ".join(f"{name}={value}" for name, value in wanted.constants if isinstance(value, (bool, int)))
        cells = [f"{r.registers} / {r.spills} / {r.shared} / {r.wide_loads}+{r.wide_stores}" for r in columns]
        lines.append(f"| {wanted.kernel.strip('_')} | {types} | {tile} | {wanted.warps} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the table; non-zero when a kernel spills in a loop or needs more shared memory than an architecture has."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description="Compile every Triton kernel.")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write (%(default)s)")
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS, metavar="D", help="of the tokens (%(default)s)")
    options = parser.parse_args()
    out = options.out
    capabilities = architectures()
    found = measure(every_launch(options.channels), capabilities)
    out.write_text(table(found, capabilities))
    print(f"{len(found)} kernels for {len(capabilities)} architectures, written to {out}")
    bad = [
        f"{wanted.kernel} {wanted.constants} on sm_{capability}: {r}"
        for wanted, columns in found.items()
        for capability, r in zip(capabilities, columns, strict=True)
        if r.looped_spills or r.shared > ARCHITECTURES[capability]
    ]
    print(*bad, sep="\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
