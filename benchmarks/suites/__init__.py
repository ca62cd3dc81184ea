"""The suites: each names its cases for a plan."""

from collections.abc import Callable, Iterator

from benchmarks.cases import Plan
from benchmarks.suites import attention, compiled, families, floors, models, ops, overhead, scaling
from benchmarks.trial import Case

# On the CPU tiny calls come first, before the others have filled the heap; on a GPU what tells most.
SUITES: dict[str, Callable[[Plan], Iterator[Case]]] = {
    "overhead": overhead.cases,
    "ops": ops.cases,
    "floors": floors.cases,
    "attention": attention.cases,
    "compiled": compiled.cases,
    "models": models.cases,
    "families": families.cases,
    "scaling": scaling.cases,
}
ORDER = {"cpu": tuple(SUITES), "cuda": ("ops", "floors", "models", "attention", "compiled", "families", "overhead", "scaling")}
