"""One layer, forward and backward, over ever more tokens: time and memory of additive and of dot-product attention."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import tasks
from benchmarks.cases import Plan
from benchmarks.record import Row
from benchmarks.rivals import RIVALS
from benchmarks.suites.attention import enter_rival, open_trial
from benchmarks.trial import Case

TASK = "forward+backward"
PROOF = 256  # tokens on which a layer of mathematics of its own is held to it


def cases(plan: Plan) -> Iterator[Case]:
    scaling = plan.scaling
    for tokens in scaling.tokens:
        about = {"layer": "LadaAttention", "shape": [1, tokens, scaling.channels], "task": TASK}
        yield Case("scaling", about, tuple(plan.backends), ("official", *RIVALS), partial(time_tokens, plan, tokens, about))


def time_tokens(plan: Plan, tokens: int, about: dict[str, object], repeats: int = 31) -> Row:
    torch.manual_seed(0)
    scaling, device, run = plan.scaling, plan.device, tasks.TASKS[TASK]
    x = torch.randn(1, tokens, scaling.channels, device=device).requires_grad_()
    grad = torch.randn(x.shape, device=device)
    trial, *_ = open_trial(plan, "scaling", about, scaling.heads, run, x, grad)
    few = x[:, :PROOF].detach().requires_grad_()
    most = {"sdpa fused": (scaling.most_fused, "time"), "sdpa math": (scaling.most_math, "memory")}
    for name, make in RIVALS.items():
        limit, what = most.get(name, (tokens, ""))
        if tokens > limit:
            trial.turn_away(name, f"left out beyond {limit} tokens: {what} grows with their square")
        else:
            enter_rival(trial, name, make(scaling.channels, scaling.heads).to(device), run, x, grad, few)
    row = trial.race(repeats)
    trial.speedups()
    if row.times:
        trial.peaks()
    return row
