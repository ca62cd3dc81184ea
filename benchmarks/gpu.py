"""Turn a GPU into evidence: build in place, run the tests marked `gpu`, take the figures, let compute-sanitizer watch.

    python -m benchmarks.gpu [--out benchmarks/results] [--dry]

Nothing is fetched. Every stage has its own time limit, to which comes what those before it left, and its log in `--out`; one
that fails takes nothing from the others.
"""

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable]
SANITIZERS = {  # of shared memory and barriers, only our kernels'
    "memcheck": [],
    "racecheck": ["--kernel-regex", "kns=lada"],
    "initcheck": [],
    "synccheck": ["--kernel-regex", "kns=lada"],
}
# Runs a module with the CUDA kernels emulated, as on a device of many processors.
EMULATED = """
import runpy, sys
from cuda_emulation import build
from lada_kernels.backends.cuda import launch
build.stand_in()
launch.kernels.configure(processors=132, clusters=True)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
NOTHING_FOR_A_GPU, NOT_RUN = 5, 77  # pytest's status, and ours


@dataclass(frozen=True)
class Stage:
    """Commands that run side by side into one log, and the seconds that all of them have."""

    name: str
    commands: dict[str, list[str]]  # by label
    limit: float
    environment: dict[str, str] = field(default_factory=dict)  # beside everybody's


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    label: str
    status: int | None  # None: out of time
    seconds: float
    log: str

    @property
    def passed(self) -> bool:
        return self.status in (0, NOTHING_FOR_A_GPU, NOT_RUN)

    def __str__(self) -> str:
        states = {0: "passed", NOTHING_FOR_A_GPU: "passed", NOT_RUN: "not run", None: "out of time"}
        state = states.get(self.status, f"failed ({self.status})")
        last = next((line.strip("= ") for line in reversed(self.log.splitlines()) if line.strip()), "")
        return f"{self.label:<36} {state:<12} {self.seconds:6.1f} s  {last}"


def stages(out: Path, dry: bool) -> list[Stage]:
    """The most valuable first."""
    emulated = [*PYTHON, "-c", EMULATED]
    figures = {
        "figures": [*PYTHON, "-m", "benchmarks.foundation", "--device", "cuda", "--out", str(out / "cuda-foundation.json")]
    }
    files = sorted((ROOT / "tests").glob("*/test_*.py"))
    if dry:
        rehearsal = [*emulated, "benchmarks.foundation", "--tiny"]
        ops = ["--backend", "cuda,triton", "--only", "ops,floors,overhead,modules", "--out", str(out / "dry-foundation.json")]
        step = ["--backend", "cuda", "--only", "step", "--out", str(out / "dry-step.json")]  # minutes, where interpreted
        figures = {"figures": rehearsal + ops, "a training step": rehearsal + step}
        files = [ROOT / "tests/gpu/test_device.py"]
    tests = {str(file.relative_to(ROOT)): [*PYTHON, "-m", "pytest", "-q", "-m", "gpu", str(file)] for file in files}
    helpers = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}
    # Every tensor gets memory of its own: in a block that torch keeps, nothing is out of bounds or uninitialised.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    watched = {"emulated": [*emulated, "benchmarks.sanitized"]} if dry else sanitizers()
    architectures = os.environ.get("LADA_CUDA_ARCHS", architecture(dry))
    return [
        Stage(
            "build",
            {"build": [*PYTHON, "setup.py", "build_ext", "--inplace"]},
            300 if dry else 110,  # on two cores, and on a GPU's many
            {"LADA_CUDA_ARCHS": architectures} if architectures else {},
        ),
        # A process for each file: most of the time goes into compiling kernels.
        Stage("tests", tests, 190),
        Stage("figures", figures, 200, helpers if dry else {}),
        Stage("sanitizer", watched, 90, helpers if dry else alone),
    ]


def architecture(dry: bool) -> str | None:
    """The device's own, such as "90", for which alone it is quick to compile; None where torch finds none."""
    if dry:
        return "90"
    code = "import torch; print(*torch.cuda.get_device_capability(), sep='')"
    done = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def sanitizers() -> dict[str, list[str]]:
    """The small run under every tool of compute-sanitizer, or a note that it is not there."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    folders = [str(Path(home) / folder) for home in filter(None, homes) for folder in ("bin", "compute-sanitizer")]
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if found is None:
        why = f"compute-sanitizer is neither on the PATH nor in {', '.join(folders)}: the kernels ran unwatched"
        return {"compute-sanitizer": [*PYTHON, "-c", f"print({why!r}); exit({NOT_RUN})"]}
    run = [*PYTHON, "-m", "benchmarks.sanitized"]
    return {tool: [found, "--tool", tool, "--error-exitcode", "9", *options, *run] for tool, options in SANITIZERS.items()}


def run_stage(stage: Stage, out: Path, environment: dict[str, str]) -> list[Outcome]:
    """All commands of a stage, as many at a time as leave each two cores; their logs as one file."""
    end = time.monotonic() + stage.limit

    def outcome(label: str) -> Outcome:
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                options = {"cwd": ROOT, "env": environment | stage.environment, "start_new_session": True}
                process = subprocess.Popen(stage.commands[label], stdout=log, stderr=subprocess.STDOUT, **options)
                status = process.wait(max(1, end - begin))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, compilers for one, too
                process.wait()
                status = None
            log.seek(0)
            return Outcome(label, status, time.monotonic() - begin, log.read())

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        outcomes = list(pool.map(outcome, stage.commands))
    text = "\n".join(f"{outcome}\n{outcome.log}" for outcome in outcomes if outcome.status != NOTHING_FOR_A_GPU)
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
    outcomes, end = [], time.monotonic()
    for stage in stages(out, options.dry):
        end += stage.limit
        stage = dataclasses.replace(stage, limit=end - time.monotonic())
        print(f"{stage.name}, at most {stage.limit:.0f} s", flush=True)
        outcomes += run_stage(stage, out, environment)
    print(*(outcome for outcome in outcomes if outcome.status != NOTHING_FOR_A_GPU), sep="\n")
    return int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
