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


class NinjaBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler.split()[0]) is None:
            raise SystemExit(f"lada_kernels: the C++ compiler {compiler!r} was not found; install g++ or set CXX")
        openmp = ["-fopenmp"] if accepts(compiler, ["-fopenmp"]) else []
        sets = instruction_sets()
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        self._write_ninja_file(build, target, compiler, openmp, sets)
        print(f"lada_kernels: compiling CPU kernels with {compiler} for {', '.join(sets)}", file=sys.stderr)
        subprocess.run([os.path.join(BIN_DIR, "ninja"), "-C", str(build)], check=True)
        threads = "OpenMP" if openmp else "one thread (the compiler takes no -fopenmp)"
        print(f"lada_kernels: built {target.name}: CPU ({', '.join(sets)}; {threads})", file=sys.stderr)

    def _write_ninja_file(self, build: Path, target: Path, compiler: str, openmp: list[str], sets: dict) -> None:
        includes = [f"-I{path}" for path in (ROOT.resolve() / "csrc", pybind11.get_include(), sysconfig.get_paths()["include"])]
        with open(build / "build.ninja", "w") as file:
            ninja = ninja_syntax.Writer(file)
            flags = " ".join([*COMMON, *WARNINGS, *openmp])
            ninja.rule("compile", f"{compiler} -MMD -MF $out.d {flags} $flags -c $in -o $out", depfile="$out.d", deps="gcc")
            shared = "-undefined dynamic_lookup -bundle" if sys.platform == "darwin" else "-shared"
            ninja.rule("link", f"{compiler} {shared} $in -o $out {' '.join(openmp)}")
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
            defines = [f"-DLADA_HAS_{name.upper()}" for name in sets]
            source = str((ROOT / "csrc" / "bindings.cpp").resolve())
            objects += ninja.build("bindings.o", "compile", source, variables={"flags": " ".join([*includes, *defines])})
            ninja.build(str(target), "link", objects)
            ninja.default(str(target))


setup(ext_modules=[Extension("lada_kernels._native", [])], cmdclass={"build_ext": NinjaBuild})
