"""Every script in examples runs as it stands, in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from lada_kernels import LadaAttention
from lada_kernels.training.sampling import load_generator

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, folder: Path, *args: str) -> str:
    """What ``examples/name`` prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_others_are_tested_here():
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.suffix) == ["digits.py", "drop_in.py"]


def test_digits(tmp_path):
    out = run("digits.py", tmp_path, "--steps", "2", "--samples", "40")
    numbers = re.search(r"untrained ([\d.]+), after 2 steps ([\d.]+)\n  precision ([\d.]+), recall ([\d.]+)\n", out)
    untrained, trained, precision, recall = map(float, numbers.groups())
    assert min(untrained, trained) > 100  # noise is nothing like digits
    assert 0 <= min(precision, recall) <= max(precision, recall) <= 1
    assert "(not FID), of 40 samples" in out
    paths = dict(re.findall(r"^(pictures|weights): +(.*)$", out, re.MULTILINE))
    assert paths == {"pictures": "runs/example/digits.png", "weights": "runs/example/generator.safetensors"}
    picture = np.asarray(Image.open(tmp_path / paths["pictures"]).convert("RGB")).astype(float)
    assert picture.shape == (1125, 1800, 3)
    height, width = 690, 1050  # of the losses; beside them are the samples, below both attention
    for part in (picture[:height, :width], picture[:height, width:], picture[height:]):
        assert part.std() > 10
        assert np.ptp(part, axis=2).max() > 100  # colours
    generator = load_generator(tmp_path / paths["weights"])
    assert [m.dim for m in generator.modules() if isinstance(m, LadaAttention)] == [128, 32, 16]


def test_drop_in(tmp_path):
    out = run("drop_in.py", tmp_path)
    assert "replaced 1\n  1 (AdditiveAttention): LadaAttention(dim=128, heads=4, " in out
    assert 0 < float(re.search(r"differ by (\S+) of their norm", out)[1]) < 1e-5
    assert min(map(float, re.search(r"R1 step: ([\d.]+) ms before, ([\d.]+) ms after", out).groups())) > 0
    assert not list(tmp_path.iterdir())
