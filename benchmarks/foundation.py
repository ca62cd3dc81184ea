"""What the kernels are worth: ops against the byte bound and the plain composition, modules, a training step, tiny calls.

    python -m benchmarks.foundation [--device cuda]

On the CPU two threads; on a machine with more cores the rest stays idle. `--only` writes the sections named, and nothing
else, to `--out`; `--tiny` rehearses all of them in little time.
"""

import argparse
import copy
import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.cases import OPS, ORDERS, PLANS, TINY_SHAPE, TOLERANCES, Plan, Shape
from benchmarks.floors import floors
from benchmarks.harness import (
    Contestant,
    Row,
    copying,
    describe,
    head_start,
    keep_freed_memory,
    peak_bytes,
    save,
    speedup,
    start_report,
    trial,
    worst_error,
)
from benchmarks.orders import at_order, described, make_cotangents, make_inputs, over, truth_of, widened
from lada_kernels import available, info
from lada_kernels.modules import LadaAttention
from lada_kernels.training.loop import Trainer

# D's loss and gradients after a whole step, against the official composition in float32; G's fakes go through 16 bits.
STEP_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}


def time_op(name: str, shape: Shape, dtype: torch.dtype, repeats: int, plan: Plan) -> Iterator[Row]:
    """All three orders of an op beside its plain twin and beside a copy of as many bytes as the order must move.

    On a GPU also beside the plain twin under torch.compile, which has no second order.
    """
    op, device = OPS[name], plan.device
    torch.manual_seed(0)
    inputs = make_inputs(op.inputs, shape, dtype, device)
    grad, cotangents = make_cotangents(op, inputs)
    compiled = None
    if device != "cpu":
        torch.compiler.reset()  # for this shape alone, as the first that it sees
        compiled = torch.compile(op.plain, fullgraph=True, dynamic=False)
    for order, units in zip(ORDERS, op.units, strict=True):
        contestants = {}
        for who in plan.backends:
            with plan.on(who):
                contestants[who] = at_order(order, op.ours, inputs, grad, cotangents)
        truth = truth_of(op, order, inputs, grad, cotangents, plan.largest_truth)
        errors = errors_of(contestants, truth, plan)
        del truth
        moved = units * inputs[op.inputs.index("t")].nbytes
        contestants |= {"plain": at_order(order, op.plain, inputs, grad, cotangents), "copy": copying(moved, device)}
        if compiled and order != ORDERS[-1]:
            contestants["compiled"] = at_order(order, compiled, inputs, grad, cotangents)
        case = described(name, shape, dtype) | {"order": order}
        around = head_start(plan.on, device)
        row = trial("ops", case, contestants, errors, TOLERANCES[dtype], repeats, device=device, around=around)
        racing = [who for who in plan.backends if who in row.times]
        if racing:
            row.figures["bytes"] = moved
        for who in racing:
            row.figures |= {
                plan.label("GB/s", who): moved / row.times[who].median / 1e9,
                plan.label("share", who): speedup(row, who, "copy"),
                plan.label("speedup", who): speedup(row, who, "plain"),
            }
            if "compiled" in contestants:
                row.figures[plan.label("over compiled", who)] = speedup(row, who, "compiled")
        if racing:
            row.figures["plain/bound"] = speedup(row, "copy", "plain")
        if device != "cpu":
            for who in (*racing, "plain"):
                with plan.on(who):
                    row.figures[f"peak bytes {who}"] = peak_bytes(contestants[who], device)
        yield row


def ops(plan: Plan, repeats: int = 31) -> Iterator[Row]:
    yield from over(plan.ops, "ops", time_op, repeats, plan)


def first_order(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """The output and every gradient, of x too."""
    out = module(x)
    return out, *torch.autograd.grad(out, [x, *module.parameters()], grad)


def r1_step(module: nn.Module, x: Tensor, _: Tensor) -> list[Tensor | None]:
    """The gradients of a gradient penalty, as R1 takes them."""
    leaves = [x, *module.parameters()]
    for leaf in leaves:
        leaf.grad = None
    (gradient,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    return [leaf.grad for leaf in leaves]


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """What one forward keeps for its backward, parameters aside: the sizes of the distinct storages."""
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    del out  # kept until here, so that no storage was freed and its address used again
    return sum(saved.values())


def time_module(shape: Shape, repeats: int, plan: Plan, heads: int = 4) -> Iterator[Row]:
    torch.manual_seed(0)
    ours = LadaAttention(shape[2], heads).to(plan.device)
    plain = peers.PlainAttention(ours)
    x, grad = torch.randn(shape, device=plan.device).requires_grad_(), torch.randn(shape, device=plan.device)
    true_module, (true_x,) = peers.PlainAttention(copy.deepcopy(ours).double()), widened([x])
    for task, run in (("forward+backward", first_order), ("R1", r1_step)):
        truth = run(true_module, true_x, grad.double())
        contestants = {who: partial(run, ours, x, grad) for who in plan.backends} | {"plain": partial(run, plain, x, grad)}
        case = {"module": "LadaAttention", "shape": list(shape), "task": task}
        errors = errors_of(contestants, truth, plan)
        row = trial("modules", case, contestants, errors, 1e-4, repeats, device=plan.device, around=plan.on)
        for who in filter(row.times.get, plan.backends):
            row.figures[plan.label("speedup", who)] = speedup(row, who, "plain")
            if run is first_order:
                with plan.on(who):
                    kept, plainly = saved_bytes(ours, x), saved_bytes(plain, x)
                sizes = {"saved_bytes": kept, "plain_saved_bytes": plainly, "saved": kept / plainly}
                row.figures |= {plan.label(figure, who): size for figure, size in sizes.items()}
        yield row


def errors_of(contestants: dict[str, Contestant], truth: Sequence[Tensor | None], plan: Plan) -> dict[str, float]:
    """How far each of ours is from the truth."""
    errors = {}
    for who in plan.backends:
        with plan.on(who):
            errors[who] = worst_error(contestants[who](), truth)
    return errors


def modules(plan: Plan, repeats: int = 31) -> Iterator[Row]:
    for shape in plan.modules:
        yield from time_module(shape, repeats, plan)


def d_step(contestant: Trainer | peers.OfficialStep) -> list[Tensor]:
    """D's loss and all its gradients as one vector, from a whole step under one seed: equal latents and augmentation."""
    torch.manual_seed(1)
    result = contestant.step()
    if isinstance(contestant, Trainer):
        d_loss, _, r1, *_ = result
        result = d_loss + contestant.config.optim.r1 * r1
    # The G step leaves D's gradients alone.
    return [result, torch.cat([p.grad.flatten() for p in contestant.discriminator.parameters()])]


def time_step(plan: Plan, repeats: int) -> Iterator[Row]:
    """A training step in every precision and layout, against the official composition in float32."""
    config, device = plan.step, plan.device
    size, batch = config.model.img_size, config.optim.batch_size
    images = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def trainer(precision: str, channels_last: bool) -> Trainer:
        run = dataclasses.replace(config.run, precision=precision, channels_last=channels_last)
        return Trainer(dataclasses.replace(config, run=run), images)

    variants = {
        prefix(plan, who) + precision + (" channels_last" if layout else ""): (who, precision, layout)
        for who in plan.backends
        for precision in STEP_TOLERANCES
        for layout in (False, True)
    }
    ours = {name: trainer(*variant) for name, (_, *variant) in variants.items()}
    official = peers.OfficialStep(next(iter(ours.values())))  # in float32
    # Tells what autocast is worth from what the kernels are: our loop, plain modules.
    plain = trainer("bfloat16", False)
    for model in (plain.generator, plain.discriminator, plain.ema):
        peers.make_plain(model)
    around = lambda name: plan.on(variants[name][0]) if name in variants else nullcontext()  # noqa: E731
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions are not what is judged
        truth, errors = d_step(official), {}
        for name, contestant in ours.items():
            with around(name):
                errors[name] = worst_error(d_step(contestant), truth)
    tolerances = {name: STEP_TOLERANCES[precision] for name, (_, precision, _) in variants.items()}
    worst = max(variants, key=lambda name: errors[name] / tolerances[name])
    contestants = {"official": official, **ours, "plain bfloat16": plain}
    calls = {name: contestant.step for name, contestant in contestants.items()}
    case = {"step": "LadaGAN", "pixels": size, "batch": batch}
    gate = {worst: errors[worst]}, tolerances[worst]
    row = trial("step", case, calls, *gate, repeats, warmup=1, device=device, around=around)
    row.figures = {f"error {name}": error for name, error in errors.items() if math.isfinite(error)}
    if not row.refused:
        row.figures |= {f"images/s {name}": batch / timing.median for name, timing in row.times.items()}
        row.figures |= {f"speedup {name}": speedup(row, name, "official") for name in calls if name != "official"}
        for start in (prefix(plan, who) + precision for who in plan.backends for precision in STEP_TOLERANCES):
            row.figures[f"better in {start}"] = min((start, f"{start} channels_last"), key=lambda name: row.times[name].median)
    yield row


def prefix(plan: Plan, who: str) -> str:
    return "" if len(plan.backends) == 1 else f"{who} "


def step(plan: Plan, repeats: int = 11) -> Iterator[Row]:
    yield from time_step(plan, repeats)


def overhead(plan: Plan, repeats: int = 61) -> Iterator[Row]:
    """A call, gradients recorded, on tensors so small that only its fixed cost is left: 100 in a row, as a loop makes them."""
    torch.manual_seed(0)
    device = plan.device
    folded = LadaAttention(TINY_SHAPE[2], TINY_SHAPE[3]).to(device)
    unfolded = copy.deepcopy(folded)
    unfolded.fold_query = False
    calls = {name: (op.ours, op.plain, make_inputs(op.inputs, TINY_SHAPE, torch.float32, device)) for name, op in OPS.items()}
    (x,) = make_inputs("t", TINY_SHAPE, torch.float32, device)
    calls |= {
        "LadaAttention": (folded, peers.PlainAttention(folded), [x]),
        "LadaAttention, not folded": (unfolded, peers.PlainAttention(unfolded), [x]),
    }
    for name, (ours, plain, inputs) in calls.items():
        contestants = {who: partial(ours, *inputs) for who in plan.backends} | {"plain": partial(plain, *inputs)}
        true_plain = copy.deepcopy(plain).double() if isinstance(plain, nn.Module) else plain
        truth = true_plain(*widened(inputs))
        errors = errors_of({who: lambda ours=ours, inputs=inputs: [ours(*inputs)] for who in plan.backends}, [truth], plan)
        case, in_a_row = {"call": name, "shape": list(TINY_SHAPE)}, 1 if plan.repeats else 100
        options = {"warmup": 2 * in_a_row, "calls": in_a_row, "device": device, "around": plan.on}
        row = trial("overhead", case, contestants, errors, 1e-5, repeats, **options)
        row.figures = {plan.label("speedup", who): speedup(row, who, "plain") for who in filter(row.times.get, plan.backends)}
        yield row


# On the CPU tiny calls come first, before the others have filled the heap; on a GPU what tells most.
SECTIONS: dict[str, Callable[..., Iterator[Row]]] = {
    "overhead": overhead,
    "ops": ops,
    "floors": floors,
    "modules": modules,
    "step": step,
}
DEFAULT_SECTIONS = {"cpu": "overhead,ops,modules,step", "cuda": "ops,floors,overhead,modules,step"}


def choose_backends(device: str, wanted: str | None) -> dict[str, str]:
    """What our contestants are called, and their backends: `wanted`, or all that there are for the device."""
    names = wanted.split(",") if wanted else ["cpu"] if device == "cpu" else ["cuda", "triton"]
    reasons = available()
    if unknown := [name for name in names if name not in reasons]:
        raise SystemExit(f"--backend: unknown backend {unknown[0]!r}, expected some of {','.join(reasons)}")
    for name in names:
        if reasons[name]:
            print(f"backend {name!r} is left out: {reasons[name]}")
    names = [name for name in names if wanted or reasons[name] is None]
    if not names:
        raise SystemExit(f"there is no backend for {device}")
    return {"ours": names[0]} if len(names) == 1 else {name: name for name in names}


def run(
    out: Path | None = None,
    repeats: int | None = None,
    only: str | None = None,
    device: str = "cpu",
    backend: str | None = None,
    tiny: bool = False,
    default_allocator: bool = False,
) -> int:
    """Time the kernels, on the CPU in two threads; non-zero when a result was wrong. `main` says what the arguments mean."""
    names = (only or DEFAULT_SECTIONS["cuda" if tiny else device]).split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise SystemExit(f"--only: unknown section {unknown[0]!r}, expected some of {','.join(SECTIONS)}")
    out = out or Path(f"benchmarks/results/{device}-foundation.json")
    plan = dataclasses.replace(PLANS["tiny" if tiny else device](device), backends=choose_backends(device, backend))
    allocator = "the system's default, by request" if default_allocator else keep_freed_memory()
    torch.set_num_threads(2)
    # sys.argv[0] would tell where this checkout lies.
    report = start_report(shlex.join(["python", "-m", "benchmarks.foundation", *sys.argv[1:]]), allocator)
    print(f"{info.describe(report.machine)}\n\nallocator: {allocator}")
    for name in names:
        print(f"\n{name}")
        wanted = plan.repeats if repeats is None else repeats
        options: dict[str, Any] = {} if wanted is None else {"repeats": wanted}
        try:
            for row in SECTIONS[name](plan, **options):
                report.rows.append(row)
                print(describe(row), flush=True)
                save(report, out)
            report.sections.append(name)
        finally:
            save(report, out)
    print(f"\nwritten to {out}")
    return int(any(row.refused for row in report.rows))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.foundation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write (benchmarks/results/DEVICE-foundation.json)")
    parser.add_argument(
        "--repeats", type=int, help="readings of each contestant (31; training steps 11; tiny calls 61 times 100)"
    )
    sections = "; ".join(f"{device}: {names}" for device, names in DEFAULT_SECTIONS.items())
    parser.add_argument("--only", help=f"sections to run, in this order; the file will hold no others ({sections})")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors are (%(default)s)")
    parser.add_argument(
        "--backend", help="who computes: one, or several against each other (cpu on the CPU, cuda,triton on a GPU)"
    )
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the smallest sizes, whose times mean nothing")
    parser.add_argument(
        "--default-allocator", action="store_true", help="leave the CPU's allocator alone: fresh outputs with their page faults"
    )
    return run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
