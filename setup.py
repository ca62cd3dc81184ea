"""Compile csrc into lada_kernels._native. Needs no torch: everything else is in pyproject.toml."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from ninja import BIN_DIR, ninja_syntax
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
KERNELS = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
CUDA_KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CUDA_COMMON = ["-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
CUDA_ARCHITECTURES = ("80", "90", "100")
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# GCC 12 sees uninitialised values in its own AVX-512 headers.
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-maybe-uninitialized"]
# Each kernel file is compiled once per instruction set; csrc/bindings.cpp picks one when it runs.
INSTRUCTION_SETS = {
    "avx512": ["-march=x86-64-v4"],
    "avx2": ["-march=x86-64-v3"],
    "baseline": [],
}


def instruction_sets() -> dict[str, list[str]]:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return INSTRUCTION_SETS
    return {"baseline": []}


def accepts(compiler: str, flags: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("int main() { return 0; }\n")
        command = [*compiler.split(), *flags, str(source), "-o", str(source.with_suffix(""))]
        return subprocess.run(command, capture_output=True).returncode == 0


def find_nvcc() -> str | None:
    """CUDACXX, or nvcc on the PATH or under CUDA_HOME."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    candidates = (os.environ.get("CUDACXX"), "nvcc", str(home / "bin" / "nvcc"))
    return next((path for path in map(shutil.which, filter(None, candidates)) if path), None)


def cuda_architectures(nvcc: str | None) -> list[str]:
    """Those of LADA_CUDA_ARCHS, such as "80;90"; else those of ours that nvcc knows."""
    wanted = os.environ.get("LADA_CUDA_ARCHS")
    if wanted is None:
        options = [nvcc, "--list-gpu-code"]
        known = subprocess.run(options, capture_output=True, text=True, check=True).stdout.split() if nvcc else ()
        return [arch for arch in CUDA_ARCHITECTURES if f"sm_{arch}" in known]
    architectures = [arch.strip().removeprefix("sm_") for arch in wanted.replace(",", ";").split(";") if arch.strip()]
    for arch in architectures:
        if not arch.rstrip("af").isdigit():
            raise SystemExit(f"lada_kernels: LADA_CUDA_ARCHS: got {arch!r}, expected numbers such as 80;90;100")
    return sorted(architectures, key=lambda arch: int(arch.rstrip("af"))) if nvcc else []


def code_for(architectures: list[str]) -> list[str]:
    """Machine code for each, and PTX of the newest for what comes after it."""
    targets = [(arch, f"sm_{arch}") for arch in architectures] + [(architectures[-1], f"compute_{architectures[-1]}")]
    return [f"-gencode=arch=compute_{virtual},code={code}" for virtual, code in targets]


class NinjaBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler.split()[0]) is None:
            raise SystemExit(f"lada_kernels: the C++ compiler {compiler!r} was not found; install g++ or set CXX")
        openmp = ["-fopenmp"] if accepts(compiler, ["-fopenmp"]) else []
        sets, nvcc = instruction_sets(), find_nvcc()
        architectures = cuda_architectures(nvcc)
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        self._write_ninja_file(build, target, compiler, openmp, sets, nvcc, architectures)
        print(f"lada_kernels: compiling CPU kernels with {compiler} for {', '.join(sets)}", file=sys.stderr)
        if architectures:
            cuda = f"CUDA ({', '.join('sm_' + arch for arch in architectures)})"
            print(f"lada_kernels: compiling CUDA kernels with {nvcc} for {cuda}", file=sys.stderr)
        else:
            cuda = "no CUDA (LADA_CUDA_ARCHS is empty)" if nvcc else "no CUDA (nvcc was not found)"
        subprocess.run([os.path.join(BIN_DIR, "ninja"), "-C", str(build)], check=True)
        threads = "OpenMP" if openmp else "one thread (the compiler takes no -fopenmp)"
        print(f"lada_kernels: built {target.name}: CPU ({', '.join(sets)}; {threads}), {cuda}", file=sys.stderr)

    def _write_ninja_file(
        self,
        build: Path,
        target: Path,
        compiler: str,
        openmp: list[str],
        sets: dict,
        nvcc: str | None,
        architectures: list[str],
    ) -> None:
        includes = [f"-I{path}" for path in (ROOT.resolve() / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]
        with open(build / "build.ninja", "w") as file:
            ninja = ninja_syntax.Writer(file)
            flags = " ".join([*COMMON, *WARNINGS, *openmp])
            ninja.rule("compile", f"{compiler} -MMD -MF $out.d {flags} $flags -c $in -o $out", depfile="$out.d", deps="gcc")
            shared = "-undefined dynamic_lookup -bundle" if sys.platform == "darwin" else "-shared"
            link = f"{compiler} {shared} {' '.join(openmp)}"
            if architectures:  # nvcc knows where its runtime is, whose names stay inside: torch brings a runtime of its own
                options = " ".join(f"-Xcompiler {flag}" for flag in openmp)
                link = f"{nvcc} -ccbin {compiler} -shared -cudart static -Xlinker --exclude-libs,ALL {options}"
            ninja.rule("link", f"{link} $in -o $out")
            objects = [
                ninja.build(
                    f"{kernel.stem}.{name}.o",
                    "compile",
                    str(kernel.resolve()),
                    variables={"flags": " ".join([*march, f"-DLADA_ISA={name}"])},
                )[0]
                for kernel in KERNELS
                for name, march in sets.items()
            ]
            bindings, defines = ["bindings"], [f"-DLADA_HAS_{name.upper()}" for name in sets]
            if architectures:
                defines.append(f"-DLADA_CUDA_ARCHS={','.join(architectures)}")
                bindings.append("cuda_bindings")
                objects += self._write_cuda_rules(ninja, nvcc, compiler, architectures)
            for name in bindings:
                source = str((ROOT / "csrc" / f"{name}.cpp").resolve())
                objects += ninja.build(f"{name}.o", "compile", source, variables={"flags": " ".join([*includes, *defines])})
            ninja.build(str(target), "link", objects)
            ninja.default(str(target))

    def _write_cuda_rules(self, ninja: ninja_syntax.Writer, nvcc: str, compiler: str, architectures: list[str]) -> list[str]:
        flags = " ".join([*CUDA_COMMON, f"-I{ROOT.resolve() / 'csrc' / 'cuda'}", *code_for(architectures)])
        ninja.rule(
            "compile_cuda", f"{nvcc} -ccbin {compiler} {flags} -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc"
        )
        return [ninja.build(f"{kernel.stem}.cuda.o", "compile_cuda", str(kernel.resolve()))[0] for kernel in CUDA_KERNELS]


setup(ext_modules=[Extension("lada_kernels._native", [])], cmdclass={"build_ext": NinjaBuild})
