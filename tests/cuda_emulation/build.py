"""The CUDA kernels compiled by g++ for the emulator, and imported: in this folder, device.h stands in for CUDA's.

Objects are kept in build/cuda_emulation under a hash of all that they are made of.
"""

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
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
HEADERS = sorted(header for folder in (CSRC, CSRC / "cuda", HERE) for header in folder.glob("*.h"))

# The kernels access memory as other types than its own, and no CPU may fuse what another rounds.
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off"]
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


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
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def module_path(sources: Sequence[Path] = SOURCES, *, sanitize: bool = False) -> Path:
    """The file that `load` imports."""
    flags = [*FLAGS, *SANITIZE * sanitize, *_includes()]
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of a test run wait and find it built
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            objects = list(threads.map(functools.partial(_compiled, flags=flags), (*sources, *EMULATOR)))
        folder = CACHE / _digest([*flags, *(path.name for path in objects)])
        target = folder / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not target.exists():
            folder.mkdir(exist_ok=True)
            _make(target, ["-shared", *SANITIZE * sanitize, *map(str, objects)])
    return target


def preload() -> dict[str, str]:
    """The environment in which a process can load what was compiled with `sanitize`."""
    # libstdc++ too: AddressSanitizer looks for its exceptions when the process starts.
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    files = [_run([compiler(), f"-print-file-name={name}"]).strip() for name in names]
    return {"LD_PRELOAD": " ".join(files), "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _includes() -> list[str]:
    import pybind11

    ours = (HERE, CSRC, CSRC / "cuda")  # in this order: device.h is there twice
    theirs = (cuda_headers(), pybind11.get_include(), sysconfig.get_paths()["include"])
    return [f"-I{path}" for path in ours] + [option for path in theirs for option in ("-isystem", str(path))]


def _compiled(source: Path, flags: Iterable[str]) -> Path:
    parts = [_common(), *flags, source.read_bytes()]
    target = CACHE / f"{source.stem}-{_digest(parts)}.o"
    if not target.exists():
        _make(target, [*flags, "-x", "c++", "-c", str(source)])
    return target


@functools.cache
def _common() -> str:
    """What all objects are made of: headers and compiler."""
    return _digest([_run([compiler(), "--version"]), *(header.read_bytes() for header in HEADERS)])


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def _make(target: Path, arguments: Sequence[str]) -> None:
    """Run the compiler; `target` appears when it is whole."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = Path(folder) / target.name
        _run([compiler(), *arguments, "-o", str(whole)])
        whole.replace(target)


def _run(command: Sequence[str]) -> str:
    result = subprocess.run([*command[0].split(), *command[1:]], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout
