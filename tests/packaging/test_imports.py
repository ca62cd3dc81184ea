"""The library with torch and numpy alone: every other package, Triton included, cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What torch itself requires.
OF_TORCH = "filelock typing_extensions setuptools sympy mpmath networkx jinja2 markupsafe fsspec nvidia cuda"

BARE = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in allowed and not root.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

names, allowed = json.load(sys.stdin)
allowed = {*allowed, *sys.stdlib_module_names}
sys.meta_path.insert(0, Absent())
"""

IMPORT_ALL = (
    BARE
    + """
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)

import torch
from lada_kernels import available, info, use_backend
from lada_kernels.models.ladagan import Discriminator, Generator

torch.manual_seed(0)
generator = Generator(32, (16, 8, 8), 8, (2, 2, 2), (8, 8, 8))
with use_backend("reference"):
    images = generator(torch.randn(2, 8))
    (slope,) = torch.autograd.grad(Discriminator((4, 8), (8, 8), 2, 8)(images).sum(), images, create_graph=True)
    slope.square().sum().backward()
gradient = generator.init[0].weight.grad.norm().item()
versions = info.collect()["versions"]
print(json.dumps({"failed": failed, "gradient": gradient, "triton": available()["triton"].reason, "versions": versions}))
"""
)


def run_bare(code: str, names: list[str]) -> str:
    """What a program prints that can import Python's own modules, torch with what it requires, numpy, and the library."""
    allowed = [*OF_TORCH.split(), "torch", "torchgen", "functorch", "numpy", "lada_kernels"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([names, allowed]),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare():
    """What came of importing everything there is, and of a gradient penalty."""
    paths = sorted(path.relative_to(ROOT) for path in (ROOT / "lada_kernels").rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert {"lada_kernels", "lada_kernels.models.vitgan", "lada_kernels.train", "lada_kernels.training.metrics"} <= set(names)
    return names, json.loads(run_bare(IMPORT_ALL, names))


def test_every_module_can_be_imported_but_tritons_kernels(bare):
    names, found = bare
    of_triton = {name for name in names if name.startswith("lada_kernels.backends.triton.")}
    assert found["failed"].keys() <= of_triton
    assert len(found["failed"]) >= 5
    assert set(found["failed"].values()) == {"No module named 'triton'"}


def test_models_compute_to_second_order(bare):
    assert 0 < bare[1]["gradient"] < float("inf")


def test_what_is_missing_is_said(bare):
    assert "triton" in bare[1]["triton"]
    assert bare[1]["versions"]["triton"] is None
    assert bare[1]["versions"]["torch"]


def test_the_hook_that_blocks_does_block():
    code = BARE + "\ntry:\n    import PIL\nexcept ModuleNotFoundError as error:\n    print(error, names)"
    assert run_bare(code, ["x"]) == "No module named 'PIL' ['x']\n"
