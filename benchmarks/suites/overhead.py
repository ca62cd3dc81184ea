"""Tensors so small that only a call's fixed cost is left: 100 calls in a row, as a loop makes them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import OPS, TINY_SHAPE, Plan
from benchmarks.harness import Contestant
from benchmarks.orders import make_inputs, widened
from benchmarks.record import Row
from benchmarks.suites.floors import replaying
from benchmarks.trial import Case, Trial

Function = Callable[..., Tensor]
MODES = ("no gradients", "gradients recorded")


def cases(plan: Plan) -> Iterator[Case]:
    """Eager calls, with and without gradients recorded; on a GPU also a captured one, as a graph replays it."""
    modes = MODES if plan.device == "cpu" else (*MODES, "captured")
    for name in (*OPS, "LadaAttention"):
        for mode in modes:
            about = {"call": name, "shape": list(TINY_SHAPE), "mode": mode}
            yield Case("overhead", about, tuple(plan.backends), ("plain",), partial(time_call, plan, name, mode, about))


def contestants(name: str, device: str) -> tuple[Function, Function, list[Tensor]]:
    """Ours, plain, and what both are called with."""
    if name in OPS:
        return OPS[name].ours, OPS[name].plain, make_inputs(OPS[name].inputs, TINY_SHAPE, torch.float32, device)
    ours = peers.LadaAttention(TINY_SHAPE[2], TINY_SHAPE[3]).to(device)
    return ours, peers.PlainAttention(ours), make_inputs("t", TINY_SHAPE, torch.float32, device)


def time_call(plan: Plan, name: str, mode: str, about: dict[str, object], repeats: int = 61) -> Row:
    torch.manual_seed(0)
    ours, plain, inputs = contestants(name, plan.device)
    true_plain = copy.deepcopy(plain).double() if isinstance(plain, nn.Module) else plain
    truth = [true_plain(*widened(inputs))]
    trial = Trial(plan, "overhead", about, tolerance=1e-5, peer_tolerance=1e-5)

    def calling(function: Function) -> Contestant:
        call = lambda: (function(*inputs),)  # noqa: E731
        return replaying(lambda: call, plan.device) if mode == "captured" else call

    with nullcontext() if mode == MODES[1] else torch.no_grad():
        for who in plan.backends:
            trial.enter(who, lambda: calling(ours), truth)
        trial.enter("plain", lambda: calling(plain), truth)
        in_a_row = 1 if plan.rehearsal else 100
        row = trial.race(repeats, warmup=2 * in_a_row, calls=in_a_row)
    trial.speedups()
    return row
