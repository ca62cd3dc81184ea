"""The CUDA kernels as PTX on the machine of this folder: compiled by nvcc as setup.py does, linked with a runtime of ours.

Objects are kept in build/ptx under a hash of all that they are made of.
"""

import ast
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "ptx"
NAME = "_ptx"

KERNELS = tuple(sorted((CSRC / "cuda").glob("*.cu")))
MACHINE = tuple(sorted(HERE.glob("*.cpp")))
GLUE = (HERE / "module.cpp", CSRC / "cuda_bindings.cpp")  # what calls into Python; as quick to compile as can be
FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
# Numbers as devices round them: no fusing, and the rounding mode may change.
EXACT = ("-O3", "-march=native", "-ffp-contract=off", "-frounding-math")

# What tests describe: an A100, an H100, a B200, and an L40S with less shared memory than some problems' usual form takes.
DEVICES: dict[str, dict[str, Any]] = {
    "sm_80": {"architecture": 80, "processors": 108, "shared": 163 << 10, "clusters": False},
    "sm_90": {"architecture": 90, "processors": 132, "shared": 227 << 10, "clusters": True},
    "sm_100": {"architecture": 100, "processors": 148, "shared": 227 << 10, "clusters": True},
    "sm_89": {"architecture": 89, "processors": 142, "shared": 99 << 10, "clusters": False},
}


def of_setup(name: str) -> Any:
    """A constant of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


@functools.cache
def nvccs() -> dict[str, str]:
    """The compilers that there are, by version: that of the PATH first, then the newer one of the package nvidia-cuda-nvcc."""
    found = {}
    installed = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "nvcc"
    for path in filter(None, (shutil.which("nvcc"), str(installed) if installed.exists() else None)):
        version = re.search(r"release [\d.]+, V([\d.]+)", _run([path, "--version"]))[1]
        found.setdefault(version, path)
    return found


@functools.cache
def unavailable() -> str | None:
    """None where the kernels can be compiled and run, else why not."""
    for tool in ("nvcc", compiler().split()[0]):
        if shutil.which(tool) is None:
            return f"{tool!r} was not found"
    return None if importlib.util.find_spec("pybind11") else "pybind11 is not installed"


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def load(sources: Sequence[Path] = (), nvcc: str | None = None, architectures: Sequence[str] | None = None) -> ModuleType:
    """The machine, with these CUDA sources, which with `csrc/cuda_bindings.cpp` or by themselves define `lada::bind_cuda`.

    `architectures`: of the sources that are not the project's own, setup.py's if it is None.
    """
    path = module_path(sources, nvcc, architectures)
    # pybind11 takes modules of one name for the same one.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{NAME}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_kernels(
    nvcc: str | None = None, changed: Path | None = None, architectures: Sequence[str] | None = None
) -> ModuleType:
    """The machine with the project's kernels, compiled by the nvcc of this version; `changed` takes the place of one file."""
    kernels = [changed if changed and changed.name == kernel.name else kernel for kernel in KERNELS]
    return load((*kernels, CSRC / "cuda_bindings.cpp"), nvcc, architectures)


def module_path(sources: Sequence[Path], nvcc: str | None = None, architectures: Sequence[str] | None = None) -> Path:
    """The file that `load` imports, compiled first unless it is there."""
    nvcc = nvcc or next(iter(nvccs()))
    CACHE.mkdir(parents=True, exist_ok=True)
    jobs = {}
    for source in (*sources, *MACHINE):
        wanted = of_setup("CUDA_ARCHITECTURES") if source in KERNELS or not architectures else architectures
        command = _nvcc_command(nvcc, source, wanted) if source.suffix == ".cu" else _command(source)
        jobs[_object(source, [nvcc if source.suffix == ".cu" else "", *command])] = [*command, "-c", str(source)]
    link = [*compiler().split(), "-shared", *map(str, jobs), "-lpthread"]
    target = CACHE / _digest(link) / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            slowest_first = sorted(jobs, key=lambda made: (".cu" not in jobs[made][-1], "pool" not in jobs[made][-1]))
            list(threads.map(lambda made: _make(made, jobs[made]), slowest_first))
        _make(target, link)
    return target


class Kernels(ModuleType):
    """What stands for `_native.cuda`: starts a kernel of a module of `load_kernels`, on the tensors that Python hands out."""

    def __init__(self, load: Callable[[], ModuleType]) -> None:
        super().__init__(NAME)
        self._load = load

    def why_not(self, index: int) -> str | None:
        """None: what is asked of a device when a backend is chosen compiles nothing."""
        return None

    def __getattr__(self, name: str) -> Any:
        machine = self._load()
        found = getattr(machine, name)
        if name in ("configure", "device", "launched", "registered"):
            return found

        def run(*args: Any, **arguments: Any) -> Any:
            storages.hand_over(machine)
            wanted = found(*args, **arguments)
            if not wanted:  # else it is called again, with a workspace
                storages.launched()
            return wanted

        return run


class Storages:
    """The storages whose addresses were asked for since the last launch: only these may be accessed. Those that a backend has
    allocated without values may not be read before they are written.
    """

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}
        self.fresh: set[int] = set()

    def hand_over(self, machine: ModuleType) -> None:
        machine.forget()
        for begin, size in self.asked.items():
            machine.allow(begin, size, begin in self.fresh)

    def launched(self) -> None:
        """What was handed over is written now, and may be freed."""
        self.fresh -= self.asked.keys()
        self.asked.clear()

    def watch(self) -> None:
        """Note every address that is asked for, and every tensor that a backend allocates without values."""
        data_ptr = torch.Tensor.data_ptr

        def noted(x: torch.Tensor) -> int:
            storage = x.untyped_storage()
            self.asked.pop(storage.data_ptr(), None)  # the latest come last
            self.asked[storage.data_ptr()] = storage.nbytes()
            return data_ptr(x)

        new_empty = torch.Tensor.new_empty

        def without_values(like: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            x = new_empty(like, *args, **options)
            if sys._getframe(1).f_globals["__name__"].startswith("lada_kernels.backends") and x.device.type == "cpu":
                begin = x.untyped_storage().data_ptr()
                self.fresh.add(begin)
                weakref.finalize(x, self.fresh.discard, begin)
            return x

        # Methods only: with another torch.empty, torch.device("meta") would no longer say where tensors are made.
        torch.Tensor.data_ptr, torch.Tensor.new_empty = noted, without_values


storages = Storages()


def stand_in(load: Callable[[], ModuleType] = load_kernels) -> None:
    """Put executed PTX, compiled when first used, in the place of the GPU's: the backend "cuda" computes on CPU tensors."""
    from lada_kernels.backends.cuda import launch

    if not isinstance(launch.kernels, Kernels):
        storages.watch()
    launch.kernels = Kernels(load)
    launch.DEVICE, launch.queue = "cpu", lambda x: (launch.kernels.device(), 0)


def _command(source: Path) -> list[str]:
    includes = [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(_cuda_headers())]
    if source not in GLUE:
        return [*compiler().split(), *FLAGS, *EXACT, *includes]
    return [*compiler().split(), *FLAGS, "-O0", *includes, *_python_headers()]


def _python_headers() -> list[str]:
    import pybind11

    return [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]


def _nvcc_command(version: str, source: Path, architectures: Sequence[str]) -> list[str]:
    """As setup.py compiles, but PTX alone, for all architectures at once; names do not depend on the folder."""
    common = [flag for flag in of_setup("CUDA_COMMON") if flag not in ("-cudart", "static")]
    ptx = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in architectures]
    return [
        *(nvccs()[version], "-ccbin", compiler(), *common, *ptx, "--no-compress", "-frandom-seed", source.name),
        *(f"-I{path}" for path in (source.parent, CSRC / "cuda", CSRC)),
        *([] if source in KERNELS else _python_headers()),
    ]


def _cuda_headers() -> Path:
    """The folder of headers of the nvcc on the PATH."""
    roots = (os.environ.get("CUDA_HOME"), Path(shutil.which("nvcc")).resolve().parents[1], "/usr/local/cuda")
    return next(path for path in (Path(root) / "include" for root in roots if root) if (path / "cuda_runtime_api.h").exists())


def _object(source: Path, command: Iterable[str]) -> Path:
    """Where its object is kept."""
    texts = {}
    _read(source, texts)
    digest = _digest([_run([*compiler().split(), "--version"]), *command, *(text for _, text in sorted(texts.items()))])
    return CACHE / f"{source.stem}-{digest}.o"


def _read(file: Path, texts: dict[Path, str]) -> None:
    """Add this file and what it includes of ours."""
    texts[file] = file.read_text()
    for bracket, name in re.findall(r'^#include ([<"])(.+)[>"]', texts[file], re.MULTILINE):
        folders = (CSRC / "cuda", CSRC) if bracket == "<" else (file.parent, HERE, CSRC)
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found and found not in texts:
            _read(found, texts)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(target: Path, command: Sequence[str]) -> None:
    """Run the compiler for a file that is not there yet, and appears when it is whole."""
    with open(target.with_suffix(".lock"), "w") as lock, tempfile.TemporaryDirectory(dir=CACHE) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of a test run that wants it waits
        if not target.exists():
            whole = Path(folder) / target.name
            _run([*command, "-o", str(whole)])
            whole.replace(target)


@functools.cache
def _run_once(command: tuple[str, ...]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def _run(command: Sequence[str]) -> str:
    return _run_once(tuple(command))


if __name__ == "__main__":  # compile all that the tests run
    for version in [] if unavailable() else nvccs():
        print(f"the CUDA kernels' PTX by nvcc {version}: {load_kernels(version).__file__}")
