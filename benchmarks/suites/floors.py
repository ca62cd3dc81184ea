"""How near small calls come to the launch floor: the CUDA graph of one call beside the CUDA graph of an empty kernel."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.cases import OPS, ORDERS, PEER_TOLERANCES, TOLERANCES, Call, Plan
from benchmarks.harness import Contestant, copying, head_start
from benchmarks.orders import Setting
from benchmarks.record import Row
from benchmarks.trial import Case, Trial, described


def cases(plan: Plan) -> Iterator[Case]:
    for call in plan.floors:
        for order in ORDERS[:2]:
            about = described(*call) | {"order": order}
            others = ("plain", "copy", "empty")
            yield Case("floors", about, tuple(plan.backends), others, partial(time_floor, plan, call, order, about))


def replaying(make: Contestant, device: str) -> Contestant:
    """The call that `make` makes, captured; it returns the results, which the next replay overwrites. Itself on a CPU."""
    if device == "cpu":
        return make()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # autograd runs a backward where its forward ran, and must meet the capture there
        call = make()
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = call()

    def replay() -> object:
        graph.replay()
        return results

    replay.kept = call  # the graph reads what its autograd graph saved
    return replay


def empty(device: str) -> Contestant:
    """What starts a kernel that does nothing."""
    if device == "cpu":
        return lambda: None
    import triton

    @triton.jit
    def nothing():
        pass

    return lambda: nothing[(1,)]()


def time_floor(plan: Plan, call: Call, order: str, about: dict[str, object], repeats: int = 31) -> Row:
    """The results that are judged are those of a replay."""
    name, _, dtype = call
    op, device, setting = OPS[name], plan.device, Setting(call, order, plan.device)
    truth = setting.truth(plan.largest_truth)
    trial = Trial(plan, "floors", about, TOLERANCES[dtype], PEER_TOLERANCES[dtype])
    for who in plan.backends:
        trial.enter(who, lambda: replaying(lambda: setting.calling(op.ours), device), truth)
    trial.enter("plain", lambda: replaying(lambda: setting.calling(op.plain), device), truth)
    trial.enter("copy", lambda: replaying(lambda: copying(setting.bytes_moved, device), device))
    trial.enter("empty", lambda: replaying(lambda: empty(device), device))
    row = trial.race(repeats, calls=1 if plan.rehearsal else 20, around=head_start(trial.on, device))
    trial.speedups()
    for who in row.times:
        trial.note("share", who, trial.speedup(who, "copy"))
        trial.note("floors", who, 1 / trial.speedup(who, "empty"))
    return row
