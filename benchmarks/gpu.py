"""Turn a GPU into evidence: build in place, run the tests marked `gpu`, take the figures; nothing is fetched.

    python -m benchmarks.gpu [--out benchmarks/results] [--dry]

Every stage has its own time limit and its log in `--out`; one that fails takes nothing from the others.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Stage:
    """Commands that run side by side into one log, and the seconds that all of them have."""

    name: str
    commands: dict[str, list[str]]  # label -> what follows the interpreter
    limit: float


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    label: str
    status: int | None  # None: out of time
    seconds: float
    log: str

    @property
    def passed(self) -> bool:
        """pytest's status 5: nothing here is for a GPU."""
        return self.status in (0, 5)

    def __str__(self) -> str:
        state = "passed" if self.passed else "out of time" if self.status is None else f"failed ({self.status})"
        last = next((line.strip("= ") for line in reversed(self.log.splitlines()) if line.strip()), "")
        return f"{self.label:<36} {state:<12} {self.seconds:6.1f} s  {last}"


def stages(out: Path, dry: bool) -> list[Stage]:
    """The most valuable first."""
    figures = ["-m", "benchmarks.foundation"]
    if dry:
        figures += ["--tiny", "--backend", "triton", "--out", str(out / "dry-foundation.json")]
    else:
        figures += ["--device", "cuda", "--out", str(out / "cuda-foundation.json")]
    files = [ROOT / "tests/gpu/test_device.py"] if dry else sorted((ROOT / "tests").glob("*/test_*.py"))
    return [
        Stage("build", {"build": ["setup.py", "build_ext", "--inplace"]}, 120),
        # A process for each file: most of the time goes into compiling kernels.
        Stage("tests", {str(file.relative_to(ROOT)): ["-m", "pytest", "-q", "-m", "gpu", str(file)] for file in files}, 240),
        Stage("figures", {"figures": figures}, 220),
    ]


def run_stage(stage: Stage, out: Path, environment: dict[str, str]) -> list[Outcome]:
    """All commands of a stage, as many at a time as leave each two cores; their logs as one file."""
    end = time.monotonic() + stage.limit

    def outcome(label: str) -> Outcome:
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                command = [sys.executable, *stage.commands[label]]
                limit = max(1, end - begin)
                done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
                status = done.returncode
            except subprocess.TimeoutExpired:
                status = None
            log.seek(0)
            return Outcome(label, status, time.monotonic() - begin, log.read())

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        outcomes = list(pool.map(outcome, stage.commands))
    text = "\n".join(f"{outcome}\n{outcome.log}" for outcome in outcomes if outcome.status != 5)
    (out / f"gpu-{stage.name}.log").write_text(text)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="for results and logs (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="rehearse without a GPU: kernels interpreted, the smallest sizes")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | ({"TRITON_INTERPRET": "1"} if options.dry else {})
    outcomes = []
    for stage in stages(out, options.dry):
        print(f"{stage.name}, at most {stage.limit:.0f} s", flush=True)
        outcomes += run_stage(stage, out, environment)
    print(*(outcome for outcome in outcomes if outcome.status != 5), sep="\n")
    return int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
