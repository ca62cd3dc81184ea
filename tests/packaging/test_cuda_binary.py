"""What ptxas made of the CUDA kernels, read from the installed binary: no spills, and every access 16 bytes at a time."""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from lada_kernels.backends.native import native

# The kernels that stream [B,N,D] tensors, by source and name: how many each of their hot loops reads and writes.
STREAMED = {
    ("additive_pool", "forward"): [(1, 0)],
    ("additive_pool", "backward"): [(1, 1)],
    ("additive_pool_double_backward", "gather"): [(2, 0)],
    ("additive_pool_double_backward", "scatter"): [(1, 1)],
    ("additive_attention", "forward"): [(1, 0), (2, 1)],
    ("gated_product", "forward"): [(2, 1)],
    ("gated_product", "backward"): [(3, 2)],
    ("gated_product", "double_backward"): [(5, 3)],
    ("modulated_layer_norm", "forward"): [(1, 1)],
    ("modulated_layer_norm", "backward"): [(2, 1)],
    ("modulated_layer_norm", "double_backward"): [(3, 2)],
}
# A kernel's mangled name: its source and name, its storage type, and for a pool its Form's tokens.
NAME = re.compile(
    r"[0-9a-f]{8}_\d+_(\w+?)_cu_[0-9a-f]{8}\d+(\w+?)_kernelI(f|6__half|13__nv_bfloat16)(?:NS0_4FormILi\d+ELi(\d+)E)?"
)
WIDE = re.compile(r"\b(LDG|STG)\.[\w.]*\b128\b")
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/(.*?);")
BRANCH = re.compile(r"\bBRA\b.*?\b0x([0-9a-f]+)")


def _cuobjdump() -> str | None:
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


def _why_not() -> str | None:
    if native is None or not native.build_info()["cuda_architectures"]:
        return "the native module was built without CUDA"
    return None if _cuobjdump() else "cuobjdump comes with triton or the CUDA toolkit, and neither has it here"


pytestmark = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))
ARCHITECTURES = [] if _why_not() else [f"sm_{arch}" for arch in native.build_info()["cuda_architectures"].split(",")]


def dump(*options: str) -> Iterator[str]:
    with subprocess.Popen([_cuobjdump(), *options, native.__file__], stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout
    assert process.returncode == 0


def kernels_in(lines: Iterator[str]) -> dict[str, dict[str, list[str]]]:
    """Architecture -> mangled name -> the lines that follow it."""
    found, lines_of = defaultdict(dict), []
    for line in lines:
        if match := re.match(r"arch = (\w+)", line):
            kernels = found[match[1]]
        elif match := re.match(r"\s*Function\s*:?\s*([^\s:]+)", line):
            lines_of = kernels.setdefault(match[1], [])
        else:
            lines_of.append(line)
    return found


def test_no_kernel_spills():
    found = kernels_in(dump("-res-usage"))
    assert set(ARCHITECTURES) <= set(found)
    for arch in ARCHITECTURES:
        assert len(found[arch]) > 100
        assert found[arch].keys() == found[ARCHITECTURES[0]].keys()
        for name, lines in found[arch].items():
            usage = dict(re.findall(r"([A-Z]+):(\d+)", "".join(lines)))
            assert (usage["STACK"], usage["LOCAL"]) == ("0", "0"), f"{arch} {name}: {usage}"


def vectors(source: str, kernel: str, storage: str, form_tokens: str | None) -> int:
    """How many vectors of 16 bytes of a tensor a thread of this kernel works on at a time: tokens times vectors of each."""
    channels = 4 if storage == "f" else 8  # of a vector
    if source == "gated_product":
        return {"forward": 4, "backward": 2, "double_backward": 1}[kernel]
    if source == "modulated_layer_norm":
        return 4 if kernel == "forward" else 16 // channels
    return int(form_tokens) * 8 // channels


def hot_loops(lines: list[str]) -> list[tuple[int, int]]:
    """The loads and stores of 16 bytes in every innermost loop with such loads."""
    instructions = [(int(match[1], 16), match[2]) for match in map(INSTRUCTION.match, lines) if match]
    wide = [(address, match[1]) for address, text in instructions if (match := WIDE.search(text))]
    ends = {}  # where the last branch back to a loop's beginning is
    for address, text in instructions:
        if (branch := BRANCH.search(text)) and int(branch[1], 16) < address:
            ends[int(branch[1], 16)] = address

    def count(loop: tuple[int, int], kind: str) -> int:
        return sum(loop[0] <= address <= loop[1] for address, this in wide if this == kind)

    loops = sorted(loop for loop in ends.items() if count(loop, "LDG"))
    innermost = [loop for loop in loops if not any(loop != (a, b) and loop[0] <= a and b <= loop[1] for a, b in loops)]
    return [(count(loop, "LDG"), count(loop, "STG")) for loop in innermost]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_hot_loops_load_and_store_what_the_source_asks_for(arch):
    """All of it, and 16 bytes at a time: nvcc 13.0 once dropped half of a loop's loads, which no test of the sources saw."""
    needed = re.compile(r"\s*(arch|Function)|.*(BRA|128)")
    kernels = kernels_in(line for line in dump("-sass", "-arch", arch) if needed.match(line))[arch]
    streaming = {name: match.groups() for name in kernels if (match := NAME.search(name)) and match.group(1, 2) in STREAMED}
    assert {of[:2] for of in streaming.values()} == STREAMED.keys()
    assert len(streaming) > 60
    for name, (source, kernel, *of) in streaming.items():
        at_once = vectors(source, kernel, *of)
        wanted = [(at_once * reads, at_once * writes) for reads, writes in STREAMED[source, kernel]]
        assert hot_loops(kernels[name]) == wanted, f"{arch} {name}"
