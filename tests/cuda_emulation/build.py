"""The CUDA kernels compiled by g++ for the emulator, and imported: in this folder, device.h stands in for CUDA's.

Objects are kept in build/cuda_emulation under a hash of all that they are made of.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda_emulation"
NAME = "_cuda_emulated"

KERNELS = tuple(sorted((CSRC / "cuda").glob("*.cu")))
SOURCES = (*KERNELS, CSRC / "cuda_bindings.cpp")
EMULATOR = (HERE / "emulator.cpp", HERE / "module.cpp")
FOLDERS = (HERE, CSRC, CSRC / "cuda")  # of headers, in this order: device.h is there twice

# The kernels access memory as other types than its own, and no CPU may fuse what another rounds.
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off")
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "-fno-sanitize-recover=all",
)
GLUE = (SOURCES[-1], EMULATOR[-1])  # what calls into Python; as quick to compile as can be, and never sanitized


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def cuda_headers() -> Path | None:
    """The toolkit's folder of headers."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    folders = [Path(root) / "include" for root in roots if root]
    return next((folder for folder in folders if (folder / "cuda_bf16.h").exists()), None)


@functools.cache
def unavailable() -> str | None:
    """None where the kernels can be compiled for the emulator, else why not."""
    if shutil.which(compiler().split()[0]) is None:
        return f"the C++ compiler {compiler()!r} was not found"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if cuda_headers() is None:
        return "no CUDA headers in $CUDA_HOME, beside nvcc or in /usr/local/cuda"
    return None


@functools.cache
def load(sources: Sequence[Path] = SOURCES, *, sanitize: bool = False) -> ModuleType:
    """The module of these sources, which define `lada::bind_cuda`; compiled first unless it is there.

    `sanitize`: with AddressSanitizer and UBSan, for a process that has preloaded them (see `preload`).
    """
    path = module_path(sources, sanitize=sanitize)
    # pybind11 takes modules of one name for the same one.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{NAME}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(load: Callable[[], ModuleType] = load) -> None:
    """Put emulated kernels, loaded when first used, in the place of the GPU's: the backend "cuda" computes on CPU tensors."""
    from lada_kernels.backends.cuda import launch

    launch.kernels = ModuleType(NAME)
    launch.kernels.__getattr__ = lambda name: getattr(load(), name)
    launch.kernels.why_not = lambda device: None  # known before they are compiled
    launch.DEVICE, launch.queue = "cpu", lambda x: (0, 0)


def changed(kernel: Path) -> tuple[Path, ...]:
    """SOURCES with this file in the place of the kernel of its name."""
    assert kernel.name in {source.name for source in SOURCES}
    return tuple(kernel if source.name == kernel.name else source for source in SOURCES)


def module_path(sources: Sequence[Path] = SOURCES, *, sanitize: bool = False) -> Path:
    """The file that `load` imports."""
    sources = (*sources, *EMULATOR)
    objects = [_object(source, _flags(source, sanitize)) for source in sources]
    link = ["-shared", *SANITIZERS * sanitize, *map(str, objects)]
    target = CACHE / _digest(link) / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock, ThreadPoolExecutor(os.cpu_count()) as threads:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a test run wait and find it made
        compiling = [["-x", "c++", "-c", str(source), *_flags(source, sanitize)] for source in sources]
        list(threads.map(_make, objects, compiling))
        _make(target, link)
    return target


def preload() -> dict[str, str]:
    """The environment in which a process can load what was compiled with `sanitize`."""
    # libstdc++ too: AddressSanitizer looks for its exceptions when the process starts.
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    files = [_run([compiler(), f"-print-file-name={name}"]).strip() for name in names]
    return {"LD_PRELOAD": " ".join(files), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _flags(source: Path, sanitize: bool) -> list[str]:
    import pybind11

    kernel = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS] if sanitize else ["-O2"]
    theirs = (cuda_headers(), pybind11.get_include(), sysconfig.get_paths()["include"])
    includes = [f"-I{path}" for path in FOLDERS] + [f"-isystem{path}" for path in theirs]
    return [*FLAGS, *(["-O0"] if source in GLUE else kernel), *includes]


def _object(source: Path, flags: Iterable[str]) -> Path:
    """Where its object is kept."""
    texts = {}
    _read(source, texts)
    digest = _digest([_run([compiler(), "--version"]), *flags, *(text for _, text in sorted(texts.items()))])
    return CACHE / f"{source.stem}-{digest}.o"


def _read(file: Path, texts: dict[Path, str]) -> None:
    """Add this file and what it includes of ours."""
    texts[file] = file.read_text()
    for bracket, name in re.findall(r'^#include ([<"])(.+)[>"]', texts[file], re.MULTILINE):
        folders = FOLDERS if bracket == "<" else (file.parent, *FOLDERS)
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found and found not in texts:
            _read(found, texts)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(target: Path, arguments: Sequence[str]) -> None:
    """Run the compiler for a file that is not there yet, and appears when it is whole."""
    if target.exists():
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = Path(folder) / target.name
        _run([compiler(), *arguments, "-o", str(whole)])
        whole.replace(target)


def _run(command: Sequence[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # sanitizers are slow compilers
    result = subprocess.run([*command[0].split(), *command[1:]], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout
