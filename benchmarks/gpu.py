"""Turn a GPU into evidence: build in place, judge every kernel, run the tests marked `gpu`, take figures, have them watched.

    python -m benchmarks.gpu [--stages build,tests] [--out benchmarks/results] [--dry]

The stages: build; smoke, which makes a table of the backends, ops, dtypes and orders that are right; tests, which begins with
smoke; figures; sanitizer. build and tests take 260 s at most, figures and sanitizer 330 s, for a GPU that is lent for minutes.

Nothing is fetched. Every stage has its own time limit, to which comes what those before it left, and its log in `--out`; one
that fails takes nothing from the others. What a rehearsal writes lies in the folder `dry` of that.
"""

import argparse
import dataclasses
import importlib.machinery
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import verdicts

ROOT = Path(__file__).parent.parent
PYTHON = [sys.executable]
SANITIZERS = {  # of shared memory and barriers, only our kernels'
    "memcheck": [],
    "racecheck": ["--kernel-regex", "kns=lada"],
    "initcheck": [],
    "synccheck": ["--kernel-regex", "kns=lada"],
}
# Runs a module with the PTX of the CUDA kernels executed on the CPU, as on a device of many processors.
EXECUTED = """
import runpy, sys
from ptx import build
from lada_kernels.backends.cuda import launch
build.stand_in()
launch.kernels.configure(processors=132, clusters=True)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
NOTHING_FOR_A_GPU, NOT_RUN = 5, 77  # pytest's status, and ours
TESTED = ("gpu", "ops")  # the folders of tests with tests marked `gpu`
SHARES = 16  # of Triton's tests, whose time goes into compiling kernels
FEW_THREADS = {"OMP_NUM_THREADS": "2"}  # where every core has a process
HELPERS = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}


@dataclass(frozen=True)
class Stage:
    """Commands that run side by side into one log, and the seconds that all of them have."""

    name: str
    commands: dict[str, list[str]]  # by label
    limit: float
    environment: dict[str, str] = field(default_factory=dict)  # beside everybody's
    cores: int = 2  # that each command is left
    digest: Callable[[Sequence["Outcome"]], str] | None = None  # of what its commands found


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

    @property
    def state(self) -> str:
        states = {0: "passed", NOTHING_FOR_A_GPU: "passed", NOT_RUN: "not run", None: "out of time"}
        return states.get(self.status, f"failed ({self.status})")

    def __str__(self) -> str:
        last = next((line.strip("= ") for line in reversed(self.log.splitlines()) if line.strip()), "")
        return f"{self.label:<36} {self.state:<12} {self.seconds:6.1f} s  {last}"


def build(out: Path, dry: bool) -> Stage:
    architectures = os.environ.get("LADA_CUDA_ARCHS", architecture(dry))
    return Stage(
        "build",
        {"build": [*PYTHON, "setup.py", "build_ext", "--inplace"]},
        300 if dry else 90,  # on two cores, and on a GPU's many
        {"LADA_CUDA_ARCHS": architectures} if architectures else {},
    )


def smoke(out: Path, dry: bool) -> Stage:
    """A process for each backend, op and dtype: a kernel that ends its process takes no verdict from the others."""
    expected, commands = verdicts.places(), {}
    for backend, op, dtype, _ in expected:
        command = [*PYTHON, "-m", "gpu.smoke", "--backend", backend, "--op", op]
        if dry:  # one for all dtypes, as most of the time goes into importing torch
            commands[f"{backend} {op}"] = [*command, "--dry"]
        else:
            commands[f"{backend} {op} {dtype}"] = [*command, "--dtype", dtype]

    def digest(outcomes: Sequence[Outcome]) -> str:
        return verdicts.table(verdicts.read(outcome.log for outcome in outcomes), expected)

    return Stage("smoke", commands, 300 if dry else 65, HELPERS | FEW_THREADS, cores=1, digest=digest)


def tests(out: Path, dry: bool) -> Stage:
    """A process for each file, but for Triton's tests, which are shared out; those of its float64 are left to `smoke`."""
    pytest = [*PYTHON, "-m", "pytest", "-q", "-m", "gpu"]
    if dry:
        files = ["tests/gpu/test_device.py"]
        return Stage("tests", {file: [*pytest, file] for file in files}, 95)
    folders = [f"tests/{folder}" for folder in TESTED]
    files = sorted(str(file.relative_to(ROOT)) for folder in folders for file in (ROOT / folder).glob("test_*.py"))
    commands = {file: [*pytest, "-k", "not triton", file] for file in files}
    commands |= {
        f"triton {i} of {SHARES}": [*pytest, "-k", "triton and not float64", "--share", f"{i}/{SHARES}", *folders]
        for i in range(1, SHARES + 1)
    }
    return Stage("tests", commands, 95, FEW_THREADS, cores=1)


def figures(out: Path, dry: bool) -> Stage:
    run = [*PYTHON, "-m", "benchmarks", "--device", "cuda", "--out", str(out)]
    if not dry:
        return Stage("figures", {"figures": run}, 235)
    rehearsal = [*PYTHON, "-c", EXECUTED, "benchmarks", "--tiny", "--device", "cpu"]
    most = ["--backend", "cuda,triton", "--only", "ops,floors,attention,families,overhead,scaling,compiled", "--out", str(out)]
    models = ["--backend", "cuda", "--only", "models", "--out", str(out / "models.json")]  # minutes, where interpreted
    commands = {"figures": rehearsal + most, "figures of models": rehearsal + models}
    return Stage("figures", commands, 235, HELPERS | FEW_THREADS, cores=1)


def sanitizer(out: Path, dry: bool) -> Stage:
    if dry:
        return Stage("sanitizer", {"executed": [*PYTHON, "-c", EXECUTED, "benchmarks.sanitized"]}, 85, HELPERS)
    # Every tensor gets memory of its own: in a block that torch keeps, nothing is out of bounds or uninitialised.
    return Stage("sanitizer", sanitizers(), 85, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


STAGES = {"build": build, "smoke": smoke, "tests": tests, "figures": figures, "sanitizer": sanitizer}  # in this order


def stages(out: Path, dry: bool, names: Sequence[str] = tuple(STAGES)) -> list[Stage]:
    """Those of these names."""
    return [make(out, dry) for name, make in STAGES.items() if name in names]


def choose(text: str) -> list[str]:
    """The stages of a list with commas between, where "tests" begins with "smoke"; refused where nothing builds the module."""
    names = text.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise SystemExit(f"--stages: unknown {', '.join(map(repr, unknown))}, expected some of {','.join(STAGES)}")
    module = [ROOT / "lada_kernels" / f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    if "build" not in names and not any(file.exists() for file in module):
        raise SystemExit(f"--stages {text}: {module[0]} is not built yet: ask for build,{text}")
    return names + ["smoke"] * ("tests" in names)


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
    """All commands of a stage, as many at a time as leave each its cores; their logs as one file."""
    end = time.monotonic() + stage.limit

    def outcome(label: str) -> Outcome:
        begin = time.monotonic()
        if begin >= end:
            return Outcome(label, None, 0.0, "")
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                options = {"cwd": ROOT, "env": environment | stage.environment, "start_new_session": True}
                process = subprocess.Popen(stage.commands[label], stdout=log, stderr=subprocess.STDOUT, **options)
                status = process.wait(end - begin)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started, compilers for one, too
                process.wait()
                status = None
            log.seek(0)
            return Outcome(label, status, time.monotonic() - begin, log.read())

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // stage.cores)) as pool:
        outcomes = list(pool.map(outcome, stage.commands))
    texts = [stage.digest(outcomes) + "\n"] if stage.digest else []
    texts += [f"{outcome}\n{outcome.log}" for outcome in outcomes]
    (out / f"gpu-{stage.name}.log").write_text("\n".join(texts))
    return outcomes


def summary(results: list[tuple[Stage, list[Outcome], float]]) -> str:
    """The digests, and a line for each stage: its state, the worst of its commands', and seconds."""
    lines = [stage.digest(outcomes) + "\n" for stage, outcomes, _ in results if stage.digest]
    for stage, outcomes, seconds in results:
        states = [outcome.state for outcome in sorted(outcomes, key=lambda outcome: outcome.passed)]
        state = next((state for state in states if state != "passed"), "passed")
        lines.append(f"{stage.name:<12} {state:<12} {seconds:6.1f} s")
    return "\n".join([*lines, f"{'total':<25} {sum(seconds for *_, seconds in results):6.1f} s"])


def headlines(out: Path, since: float) -> str:
    """The most telling figures of every results file that was written since then."""
    texts = []
    for file in sorted(out.glob("*.json")):
        if file.stat().st_mtime >= since:
            command = [*PYTHON, "-m", "benchmarks.headlines", str(file)]
            texts.append(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout)
    return "\n".join(texts)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="for results and logs (%(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="which, with commas between (%(default)s)")
    parser.add_argument("--dry", action="store_true", help="rehearse without a GPU: kernels interpreted, the smallest sizes")
    options = parser.parse_args()
    names = choose(options.stages)
    out = options.out.absolute() / ("dry" if options.dry else "")
    out.mkdir(parents=True, exist_ok=True)
    # Threads that wait asleep: where others compute too, spinning ones slow the many small calls of a rehearsal down tenfold.
    dry = {"TRITON_INTERPRET": "1", "OMP_WAIT_POLICY": "passive"} if options.dry else {}
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dry
    results, since, end = [], time.time(), time.monotonic()
    for stage in stages(out, options.dry, names):
        end += stage.limit
        begin = time.monotonic()
        stage = dataclasses.replace(stage, limit=end - begin)
        print(f"{stage.name}, at most {stage.limit:.0f} s", flush=True)
        outcomes = run_stage(stage, out, environment)
        if stage.digest:  # at once, should the rest be cut off
            print(stage.digest(outcomes))
        print(*(f"  {outcome}" for outcome in outcomes if not (stage.digest and outcome.passed)), sep="\n", flush=True)
        results.append((stage, outcomes, time.monotonic() - begin))
    print(f"\n{summary(results)}\n\n{headlines(out, since)}")
    return int(not all(outcome.passed for _, outcomes, _ in results for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
