"""How near small calls come to the launch floor: the CUDA graph of one call beside the CUDA graph of an empty kernel."""

from collections.abc import Iterator

import torch

from benchmarks.cases import OPS, ORDERS, TOLERANCES, Plan, Shape
from benchmarks.harness import Contestant, Row, copying, head_start, speedup, trial, worst_error
from benchmarks.orders import at_order, described, make_cotangents, make_inputs, over, truth_of


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


def time_floor(name: str, shape: Shape, dtype: torch.dtype, repeats: int, plan: Plan) -> Iterator[Row]:
    """Forward and backward; the results that are judged are those of a replay."""
    op, device = OPS[name], plan.device
    torch.manual_seed(0)
    inputs = make_inputs(op.inputs, shape, dtype, device)
    grad, cotangents = make_cotangents(op, inputs)
    for order, units in zip(ORDERS[:2], op.units[:2], strict=True):
        contestants = {}
        for who in plan.backends:
            with plan.on(who):
                contestants[who] = replaying(lambda order=order: at_order(order, op.ours, inputs, grad, cotangents), device)
        truth = truth_of(op, order, inputs, grad, cotangents)
        errors = {who: worst_error(contestants[who](), truth) for who in plan.backends}
        moved = units * inputs[op.inputs.index("t")].nbytes
        contestants |= {
            "plain": replaying(lambda order=order: at_order(order, op.plain, inputs, grad, cotangents), device),
            "copy": replaying(lambda moved=moved: copying(moved, device), device),
            "empty": replaying(lambda: empty(device), device),
        }
        case = described(name, shape, dtype) | {"order": order}
        row = trial(
            "floors",
            case,
            contestants,
            errors,
            TOLERANCES[dtype],
            repeats,
            calls=1 if plan.repeats else 20,
            device=device,
            around=head_start(plan.on, device),
        )
        for who in filter(row.times.get, plan.backends):
            row.figures |= {
                plan.label("floors", who): row.times[who].median / row.times["empty"].median,
                plan.label("share", who): speedup(row, who, "copy"),
                plan.label("speedup", who): speedup(row, who, "plain"),
            }
        if row.times:
            row.figures["copy's floors"] = row.times["copy"].median / row.times["empty"].median
        yield row


def floors(plan: Plan, repeats: int = 31) -> Iterator[Row]:
    yield from over(plan.floors, "floors", time_floor, repeats, plan)
