"""What the documents say of the results: the text of every block that `benchmarks.report` puts into them."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence

from benchmarks.formats import NOT_YET, Records, by_x, count, digits, duration, mebibytes, newest, no_gpu, table, times
from benchmarks.plots import pictures
from benchmarks.reading import PEERS, machine, ours, rows_of, speedup
from benchmarks.record import Record, Row, label
from benchmarks.rivals import RIVALS
from benchmarks.suites.attention import FACTOR
from benchmarks.summary import families, summary


def block(
    suite: str, tables: Callable[[list[Row]], Iterable[str]], picture: str = "", everywhere: bool = False
) -> Callable[[Records, str], str]:
    """For each results file that has the suite its picture, its tables, and who has no time in them.

    `everywhere`: a file without the suite is named.
    """

    def text(records: Records, folder: str) -> str:
        parts = []
        for name, record in records.items():
            rows = rows_of(record, suite)
            if everywhere and not rows:
                parts.append(f"**{machine(record)}**: {NOT_YET}")
            elif rows:
                parts += [f"**{machine(record)}**", *show(name, record, picture, folder), *tables(rows)]
                parts += ["\n".join(without(rows))] if without(rows) else []
        return "\n\n".join(parts + no_gpu(records))

    return text


def one_table(*header: str, lines: Callable[[Row], Iterable[Sequence[str]]]) -> Callable[[list[Row]], Iterable[str]]:
    return lambda rows: [table(header, [line for row in rows for line in lines(row)])]


def show(name: str, record: Record, picture: str, folder: str) -> list[str]:
    """The picture, if there is one."""
    there = pictures(record)
    return [f"![{there[picture].title}, {machine(record)}]({folder}{name}-{picture}.svg)"] if picture in there else []


def without(rows: Sequence[Row]) -> list[str]:
    """Who has no time, and why, in a line each."""
    lines = [f"Refused, {label(row.case)}: {row.refused}" for row in rows if row.refused]
    absent: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, why in row.absent.items():
            absent.setdefault((name, why), []).append(row.case.get("order") or row.case.get("task") or "")
    for (name, why), cases in absent.items():
        where = ", ".join(dict.fromkeys(cases))
        lines.append(f"No time for {name} in {len(cases)} {'case' if len(cases) == 1 else 'cases'} ({where}): {why}")
    return [textwrap.fill(line, 132, initial_indent="- ", subsequent_indent="  ", break_long_words=False) for line in lines]


def op_lines(row: Row) -> Iterable[list[str]]:
    case, peaks, shares = row.case, row.figures.get("peak bytes", {}), row.figures.get("share", {})
    for name in ours([row]):
        yield [
            *(f"`{case['op']}`", by_x(case["shape"]), case["dtype"], case["order"], name, duration(row.times[name])),
            *(times(speedup(row, name, peer)) for peer in ("plain", "compiled")),
            digits(row.figures["GB/s"][name]),
            *(f"{shares[who]:.2f}" if who in shares else "–" for who in (name, "compiled", "plain")),
            *(mebibytes(peaks.get(who)) for who in (name, "plain")),
        ]


def attention_lines(row: Row) -> Iterable[list[str]]:
    case, peaks, saved = row.case, row.figures.get("peak bytes", {}), row.figures.get("saved bytes", {})
    for name in ours([row]):
        yield [
            *(by_x(case["shape"]), case["task"], name, duration(row.times[name])),
            *(times(speedup(row, name, peer)) for peer in ("official", "compiled", *RIVALS)),
            f"{row.figures['matmul share'][name]:.2f}",
            *(mebibytes(sizes.get(who)) for sizes in (peaks, saved) for who in (name, "official")),
        ]


def scaling_tables(rows: list[Row]) -> Iterable[str]:
    """Times and peak memory of each task, a column for each contestant."""
    for task in dict.fromkeys(row.case["task"] for row in rows):
        few = [row for row in rows if row.case["task"] == task]
        names = list(dict.fromkeys(name for row in few for name in row.times))
        peaks = [row.figures.get("peak bytes", {}) for row in few]
        tokens = [f"{row.case['shape'][1]:,}" for row in few]
        medians = [[duration(row.times[name]) if name in row.times else "–" for name in names] for row in few]
        yield table([f"tokens, time of {task}", *names], [[n, *line] for n, line in zip(tokens, medians, strict=True)])
        memory = [[mebibytes(peak.get(name)) for name in names] for peak in peaks]
        yield table([f"tokens, peak MiB of {task}", *names], [[n, *line] for n, line in zip(tokens, memory, strict=True)])


def family_tables(rows: list[Row]) -> Iterable[str]:
    """What the models consist of, then times."""
    parts = [f"{part} {what}" for what in ("parameters", "multiply-adds") for part in "GD"]
    header = [f"{what} of {part}" for what in ("parameters", "multiply-adds") for part in "GD"]
    sizes = [
        [str(row.case["pixels"]), name, *(count(row.figures[part][name]) for part in parts)]
        for row in rows
        for name in ours([row])
        if parts[0] in row.figures
    ]
    yield table(["pixels", "who", *header], sizes)
    lines = [
        [
            *(str(row.case["pixels"]), str(row.case["batch"]), row.case["task"], name, duration(row.times[name])),
            *(digits(row.figures["images/s"][name]), mebibytes(row.figures["peak bytes"][name])),
        ]
        for row in rows
        for name in ours([row])
    ]
    yield table(["pixels", "batch", "task", "who", "time", "images/s", "peak MiB"], lines)


def model_tables(rows: Sequence[Row]) -> Iterable[str]:
    """The models' tasks, then whole training steps."""
    start = ["pixels", "batch", "task", "who", "time", "images/s", "as fast as official"]
    tasks = [line for row in rows if row.case["task"] != "training step" for line in model_lines(row)]
    yield table([*start, "as fast as official bfloat16", "peak MiB"], tasks)
    steps = [line for row in rows if row.case["task"] == "training step" for line in training_lines(row)]
    yield table([*start, "as fast as official, G compiled", "resident MiB", "waiting for images"], steps)


def model_lines(row: Row) -> Iterable[list[str]]:
    peaks = row.figures.get("peak bytes", {})
    for name, start in model_starts(row):
        yield [*start, times(speedup(row, name, "official bfloat16")), mebibytes(peaks.get(name))]


def training_lines(row: Row) -> Iterable[list[str]]:
    resident, waiting = row.figures.get("resident bytes", {}), row.figures.get("waiting", {})
    for name, start in model_starts(row):
        share = f"{waiting[name]:.2%}" if name in waiting else "–"
        yield [*start, times(speedup(row, name, "official, G compiled")), mebibytes(resident.get(name)), share]


def model_starts(row: Row) -> Iterable[tuple[str, list[str]]]:
    """By contestant, how its line in a table begins."""
    case = row.case
    for name in sorted(row.times, key=PEERS.__contains__):
        what = (str(case["pixels"]), str(case["batch"]), case["task"], name, duration(row.times[name]))
        yield name, [*what, digits(row.figures["images/s"][name]), times(speedup(row, name, "official"))]


def overhead_lines(row: Row) -> Iterable[list[str]]:
    for name in ours([row]):
        shown = (duration(row.times[who]) if who in row.times else "–" for who in (name, "plain"))
        yield [row.case["call"], row.case["mode"], name, *shown, times(speedup(row, name, "plain"))]


def compiled_lines(row: Row) -> Iterable[list[str]]:
    for name in ours([row]):
        shown = (duration(row.times[who]) if who in row.times else "–" for who in (name, "compiled", "plain"))
        cells = (f"`{row.case['call']}`", by_x(row.case["shape"]), row.case["task"], name)
        yield [*cells, *shown, times(speedup(row, name, "compiled"))]


def floor_lines(row: Row) -> Iterable[list[str]]:
    case, figures = row.case, row.figures
    for name in ours([row]):
        cells = (f"`{case['op']}`", by_x(case["shape"]), case["dtype"], case["order"], name, duration(row.times[name]))
        yield [*cells, times(speedup(row, name, "plain")), f"{figures['share'][name]:.2f}", f"{figures['floors'][name]:.1f}"]


def machines(records: Records, folder: str) -> str:
    """What was measured where, and what the machine can do."""
    lines = []
    for name, record in records.items():
        copies = [row.figures["GB/s"]["copy"] for row in rows_of(record, "ops") if "copy" in row.figures.get("GB/s", {})]
        products = [row.times["matmul"].median for row in rows_of(record, "attention") if "matmul" in row.times]
        moved = statistics.median(copies) if copies else None
        done = 2e-9 * FACTOR[record.device] ** 3 / statistics.median(products) if products else None
        lines.append(
            [
                f"[{name}](../benchmarks/results/{name}.json)",
                machine(record),
                record.machine["versions"]["torch"],
                f"{record.date[:10]}, {(record.commit or 'unknown')[:7]}" + (" and changes" if record.dirty else ""),
                digits(moved) if moved else "–",
                digits(done) if done else "–",
                f"{done / 2 / moved:.1f}" if moved and done else "–",
            ]
        )
    header = ["results", "machine", "torch", "date and commit"]
    header += ["`copy_`, GB/s", "matrix product in float32, GFLOP/s", "multiply-adds per byte copied"]
    return "\n\n".join(([table(header, lines)] if lines else []) + no_gpu(records))


def figure(picture: str) -> Callable[[Records, str], str]:
    """A block that shows a picture of the newest results of each kind of device."""

    def text(records: Records, folder: str) -> str:
        return "\n\n".join(part for name, record in newest(records).values() for part in show(name, record, picture, folder))

    return text


AS_FAST = [f"as fast as {peer}" for peer in ("official", "compiled", *RIVALS)]
CALL = ("op", "B×N×D×H", "dtype", "order", "who", "time", "as fast as plain")
BLOCKS: dict[str, Callable[[Records, str], str]] = {
    "summary": summary,
    "scaling-figure": figure("scaling"),
    "machines": machines,
    "ops": block(
        "ops",
        one_table(
            *(*CALL, "as fast as compiled", "GB/s"),
            *("share", "share, compiled", "share, plain", "peak MiB", "peak MiB, plain"),
            lines=op_lines,
        ),
        "shares",
    ),
    "attention": block(
        "attention",
        one_table(
            *("B×N×D", "task", "who", "time", *AS_FAST, "share of the matrix product"),
            *("peak MiB", "peak MiB, official", "saved MiB", "saved MiB, official"),
            lines=attention_lines,
        ),
    ),
    "compiled": block(
        "compiled",
        one_table(
            *("call", "B×N×D×H", "task", "who", "time", "plain, compiled", "plain", "as fast as plain, compiled"),
            lines=compiled_lines,
        ),
    ),
    "scaling": block("scaling", scaling_tables, "scaling"),
    "models": block("models", model_tables, "speedups"),
    "families": families,
    "families-complete": block("families", family_tables, everywhere=True),
    "overhead": block("overhead", one_table("call", "mode", "who", "time", "plain", "as fast as plain", lines=overhead_lines)),
    "floors": block("floors", one_table(*CALL, "share", "launch floors", lines=floor_lines)),
}
