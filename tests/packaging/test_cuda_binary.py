"""What ptxas made of the CUDA kernels, read from the installed binary: no spills, and 16 bytes at a time."""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from lada_kernels.native import native

# The kernels that stream [B,N,D] tensors; the others bring parts together.
STREAMING = ("forward_kernel", "backward_kernel", "gather_kernel", "scatter_kernel")
# What only reads such tensors: the pool's forward, and the first half of its double backward.
READING = ("additive_pool_cu_.*forward_kernel", "gather_kernel")


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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensors_are_streamed_16_bytes_at_a_time(arch):
    wide = re.compile(r"\b(LDG|STG)\.[\w.]*\b128\b")
    instructions = (
        line for line in dump("-sass", "-arch", arch) if wide.search(line) or line.lstrip().startswith(("arch", "Function"))
    )
    streaming = {
        name: lines for name, lines in kernels_in(instructions)[arch].items() if any(kind in name for kind in STREAMING)
    }
    assert len(streaming) > 60
    for name, lines in streaming.items():
        kinds = {wide.search(line)[1] for line in lines}
        reads_only = any(re.search(kind, name) for kind in READING)
        assert kinds >= ({"LDG"} if reads_only else {"LDG", "STG"}), f"{arch} {name}: {kinds}"
