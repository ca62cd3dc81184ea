"""The wheel: built without torch, whole, and at work outside the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "LICENSE", "README.md", "MANIFEST.in", "csrc", "lada_kernels")

RAISING_TORCH = 'raise ImportError("the build imported torch")\n'

COMPUTE = """
import torch, lada_kernels
from lada_kernels import additive_attention, available, use_backend
print(lada_kernels.__file__)
assert available()["cpu"], available()["cpu"]
torch.manual_seed(0)
q, k, v = torch.randn(2, 9, 48, dtype=torch.float64).requires_grad_().chunk(3, -1)
w = torch.randn(4, 16, dtype=torch.float64)
results = []
for name in ("cpu", "reference"):
    with use_backend(name):
        out = additive_attention(q, k, v, w)
        (slope,) = torch.autograd.grad(out.sum(), q, create_graph=True)
        results.append([out, *torch.autograd.grad(slope.square().sum(), (q, k, v))])
for fused, plain in zip(*results):
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
import lada_kernels.modules, lada_kernels.models.ladagan
"""


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The wheel and what the build said: from a copy of the sources, with a torch in the way that raises."""
    source, out, trap = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "trap"))
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif path.exists():
            shutil.copy(path, source)
    (trap / "torch.py").write_text(RAISING_TORCH)
    command = [sys.executable, "-m", "pip", "wheel", ".", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    done = run(command, cwd=source, env={**os.environ, "PYTHONPATH": str(trap), "LADA_CUDA_ARCHS": ""})
    (wheel,) = out.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="session")
def installed(built, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(built[0])])
    return target


def test_says_what_it_built(built):
    assert "lada_kernels: built _native" in built[1]
    assert "baseline" in built[1]
    # Without CUDA's kernels, which take a minute more; those that are installed here were built by the same rules.
    assert "no CUDA (LADA_CUDA_ARCHS is empty)" in built[1] or "no CUDA (nvcc was not found)" in built[1]


def test_wheel_is_whole_and_holds_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    native = [name for name in names if name.startswith("lada_kernels/_native") and name.endswith((".so", ".pyd"))]
    assert len(native) == 1
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {str(path.relative_to(ROOT)) for path in (ROOT / "lada_kernels").rglob("*.py")}
    assert "lada_kernels/py.typed" in names  # type checkers read the annotations
    rest = set(names) - modules - {*native, "lada_kernels/py.typed"}
    assert all(".dist-info/" in name for name in rest), rest
    assert any(name.endswith("licenses/LICENSE") for name in rest)
    assert "-py3-none-any" not in built[0].name


def test_metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(name).decode()
    requirements = [line.split(": ", 1)[1] for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert {line.split()[0] for line in requirements if "extra" not in line} == {"torch>=2.6", "numpy"}
    assert "Requires-Python: >=3.10" in metadata
    assert "License-Expression: MIT" in metadata


def test_installed_wheel_computes_elsewhere(installed, tmp_path):
    done = run([sys.executable, "-c", COMPUTE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_installed_wheel_knows_what_it_was_built_for(built, installed, tmp_path):
    built_for = "native.build_info()['cuda_architectures'], hasattr(native, 'cuda')"
    command = f"from lada_kernels.backends.native import native; print({built_for})"
    done = run([sys.executable, "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    assert done.stdout.split() == ["None", "False"]


def test_without_the_native_module_the_reason_is_said(installed, tmp_path):
    """What a checkout that was never compiled does: the reference runs, and says why."""
    bare = tmp_path / "bare"
    shutil.copytree(installed, bare, ignore=shutil.ignore_patterns("_native*"))
    command = """
import warnings, torch, lada_kernels
reason = lada_kernels.available()["cpu"].reason
assert "the native module could not be imported" in reason and "pip install ." in reason, reason
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        lada_kernels.gated_product(torch.ones(1, 2), torch.ones(1, 3, 2), torch.ones(1, 3, 2))
assert [str(w.message) for w in caught if "could not be imported" in str(w.message)].__len__() == 1, caught
try:
    with lada_kernels.use_backend("cpu"):
        pass
except lada_kernels.BackendError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(bare), "TRITON_INTERPRET": "0"}  # else Triton's interpreter would do
    done = run([sys.executable, "-c", command], cwd=tmp_path, env=environment)
    assert "backend 'cpu' is not available: the native module could not be imported" in done.stdout


def test_a_missing_compiler_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "the C++ compiler 'no-such-compiler' was not found; install g++ or set CXX" in done.stderr


def test_an_architecture_that_is_none_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "LADA_CUDA_ARCHS": "80;hopper"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "LADA_CUDA_ARCHS: got 'hopper', expected numbers such as 80;90;100" in done.stderr
