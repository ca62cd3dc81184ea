"""What `python -m lada_kernels.info` says, held against what it reports on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lada_kernels import available, info
from lada_kernels.backends.native import native

ROOT = Path(__file__).parents[1]


def said(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["info", *args])
    info.main()
    return capsys.readouterr().out


def test_json(monkeypatch, capsys):
    monkeypatch.setenv("LADA_CPU_ISA", "avx2")
    facts = json.loads(said(monkeypatch, capsys, "--json"))
    assert facts["backends"] == {name: found.reason for name, found in available().items()}
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    cpu = facts["devices"]["cpu"]
    assert (cpu["threads"], cpu["kernels"]) == (torch.get_num_threads(), native.build_info() if native else None)
    assert len(facts["devices"]["cuda"]["devices"]) == torch.cuda.device_count()
    assert facts["environment"]["LADA_CPU_ISA"] == "avx2"


def test_text_says_what_json_does(monkeypatch, capsys):
    text = said(monkeypatch, capsys)
    facts = info.collect()
    for name, value in facts["versions"].items():
        assert f"{name:<13} {value or 'not installed'}" in text
    for name, reason in facts["backends"].items():
        assert f"backend {name}" in text
        assert reason is None or reason in text
    assert facts["devices"]["cpu"]["name"] in text
    assert (facts["devices"]["cuda"]["reason"] or facts["devices"]["cuda"]["devices"][0]["name"]) in text
    if native:
        assert f"kernels use {native.build_info()['instruction_set']}" in text


@pytest.mark.skipif(not available()["triton"], reason=f"backend 'triton': {available()['triton']}")
def test_first_starts_of_triton_are_reported(monkeypatch, capsys):
    text = said(monkeypatch, capsys)
    assert "first starts" in text
    assert "forward_kernel" in text
    assert all(seconds > 0 for seconds in info.collect()["triton_first_starts"].values())


def test_cuda_devices_are_listed():
    facts = info.collect()
    facts["devices"]["cuda"] = {"devices": [{"name": "NVIDIA X", "capability": "90", "memory_gib": 79.1}], "reason": None}
    assert "NVIDIA X, sm_90, 79.1 GiB" in info.describe(facts)


@pytest.mark.parametrize(
    ("architectures", "text"),
    [
        ("80,90,100", "CUDA kernels for sm_80, sm_90, sm_100"),
        ("90", "CUDA kernels for sm_90"),
        (None, "built without CUDA"),
    ],
)
def test_what_was_built_for_cuda_is_said(architectures, text):
    facts = info.collect()
    facts["devices"]["cpu"]["kernels"] = {
        "instruction_sets": ["baseline"],
        "instruction_set": "baseline",
        "openmp": 0,
        "compiler": "g++",
        "cuda_architectures": architectures,
    }
    lines = info.describe(facts).splitlines()
    above = next(i for i, line in enumerate(lines) if "kernels use baseline" in line)
    assert lines[above + 1].strip() == text


def test_a_processor_without_a_name_is_called_by_its_architecture(monkeypatch):
    monkeypatch.setattr(info.Path, "read_text", lambda path: "processor : 0\nisa : rv64\n")
    monkeypatch.setattr(info.platform, "system", lambda: "Linux")
    monkeypatch.setattr(info.platform, "processor", lambda: "")
    monkeypatch.setattr(info.platform, "machine", lambda: "riscv64")
    assert info.collect()["devices"]["cpu"]["name"] == "riscv64"


@pytest.fixture
def run():
    def run(setup):
        code = f"{setup}\nimport runpy, sys\nrunpy.run_module('lada_kernels.info', run_name='__main__')"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_without_the_native_module(run):
    """An entry of None in sys.modules makes the import fail, as in a checkout that was never compiled."""
    out = run("import sys; sys.modules['lada_kernels._native'] = None")
    assert "kernels use" not in out
    assert "backend cpu          not available: the native module could not be imported" in out
    assert "reinstall with `pip install .`" in out


def test_imports_nothing_heavy(run):
    out = run(
        "import atexit, sys\n"
        "heavy = ('tyro', 'sklearn', 'scipy', 'PIL', 'tensorboard', 'lada_kernels.models', 'lada_kernels.training')\n"
        "atexit.register(lambda: print('imported:', [name for name in heavy if name in sys.modules]))"
    )
    assert out.splitlines()[-1] == "imported: []"
