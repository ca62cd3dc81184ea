"""Every op, order and dtype beside its plain twin, the twin compiled, and a copy of as many bytes as the order must move."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.cases import OPS, ORDERS, PEER_TOLERANCES, TOLERANCES, Call, Plan
from benchmarks.harness import copying, head_start
from benchmarks.orders import Setting
from benchmarks.record import Row
from benchmarks.trial import Case, Trial, described


def cases(plan: Plan) -> Iterator[Case]:
    for call in plan.ops:
        others = ("plain", *(["compiled"] if call in plan.compiled else []), "copy")
        for order in ORDERS:
            about = described(*call) | {"order": order}
            yield Case("ops", about, tuple(plan.backends), others, partial(time_order, plan, call, order, about))


def time_order(plan: Plan, call: Call, order: str, about: dict[str, object], repeats: int = 31) -> Row:
    name, _, dtype = call
    op, device, setting = OPS[name], plan.device, Setting(call, order, plan.device)
    truth = setting.truth(plan.largest_truth)
    trial = Trial(plan, "ops", about, TOLERANCES[dtype], PEER_TOLERANCES[dtype])
    for who in plan.backends:
        trial.enter(who, lambda: setting.calling(op.ours), truth)
    trial.enter("plain", lambda: setting.calling(op.plain), truth)
    if call in plan.compiled:
        torch.compiler.reset()  # for this shape alone, as the first that it sees
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
        trial.enter("compiled", lambda: setting.calling(compiled), truth)
    del truth
    moved = setting.bytes_moved
    trial.enter("copy", lambda: copying(moved, device))
    row = trial.race(repeats, around=head_start(trial.on, device))
    trial.speedups()
    if row.times:
        row.figures["bytes"] = moved
        for who in row.times:
            trial.note("GB/s", who, moved / row.times[who].median / 1e9)
            trial.note("share", who, trial.speedup(who, "copy"))
        trial.peaks()
    return row
