"""What the documents say of the results: the text of every block that `benchmarks.report` puts into them."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence

from benchmarks.cases import ORDERS
from benchmarks.plots import pictures
from benchmarks.reading import PEERS, is_ours, machine, ours, rows_of, speedup
from benchmarks.record import Record, Row, Timing, label
from benchmarks.rivals import RIVALS
from benchmarks.suites.attention import FACTOR
from benchmarks.tasks import TASKS

Records = dict[str, Record]  # by the name of the file
NO_GPU = "Not yet measured on a GPU."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def by_x(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def duration(timing: Timing) -> str:
    """The median, and the 20th and 80th percentiles."""
    scale, unit = (1e6, "µs") if timing.median < 1e-3 else (1e3, "ms") if timing.median < 1 else (1, "s")
    median, low, high = (digits(seconds * scale) for seconds in (timing.median, timing.p20, timing.p80))
    return f"{median} {unit} ({low}–{high})"


def digits(value: float) -> str:
    """Three significant ones, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"


def mebibytes(value: float | None) -> str:
    return "–" if value is None else digits(value / 2**20)


def span(values: Sequence[float], pattern: str, unit: str = "") -> str:
    low, high = (pattern.format(value) for value in (min(values), max(values)))
    return (low if low == high else f"{low}–{high}") + unit


# ---- the README's summary ----


def summary(records: Records, folder: str) -> str:
    """The newest results of each kind of device, in short."""
    newest = {record.device: record for record in sorted(records.values(), key=lambda record: record.date)}
    return "\n\n".join([summary_of(newest[device]) for device in ("cpu", "cuda") if device in newest] + no_gpu(records))


def summary_of(record: Record) -> str:
    attention = rows_of(record, "ops", op="additive_attention")
    dtypes = [row.case["dtype"] for row in attention]
    dtype = max(dict.fromkeys(dtypes), key=dtypes.count, default="float32")
    attention = [row for row in attention if row.case["dtype"] == dtype]
    shapes = len({tuple(row.case["shape"]) for row in attention})
    leader = (ours(attention) or ["ours"])[0]
    by = "" if leader == "ours" else f", backend `{leader}`"
    lines = [[f"{machine(record)}, {dtype}{by}: times as fast", *ORDERS]]

    def orders(start: str, peer: str, pattern: str, unit: str) -> None:
        rows = [[row for row in attention if row.case["order"] == order] for order in ORDERS]
        lines.append([start, *(cell(those, peer, pattern, unit) for those in rows)])

    if attention:
        orders(f"`additive_attention`, {shapes} shapes, as plain torch", "plain", "{:.1f}", "x")
        compiled = {by_x(row.case["shape"]) for row in attention if "compiled" in row.times}
        where = f", at {compiled.pop()}" if shapes > 1 == len(compiled) else ""
        orders(f"… as plain torch compiled{where}", "compiled", "{:.1f}", "x")
        orders("… share of the byte bound", "copy", "{:.2f}", "")
    if layers := rows_of(record, "attention"):
        lines += summary_of_layers(layers)
    return f"{table(lines[0], lines[1:] + summary_of_training(record))}\n\n{caption(record)}"


def summary_of_layers(layers: list[Row]) -> list[list[str]]:
    rows = [[row for row in layers if row.case["task"] == task] for task in TASKS]
    widths = sorted({row.case["shape"][2] for row in layers})
    saved = [row.figures["saved bytes"] for row in layers if "saved bytes" in row.figures]
    fractions = [
        part[name] / part["official"] for part in saved for name in list(part)[:1] if "official" in part and is_ours(name)
    ]
    lines = [["", *(task.replace("+", " + ") for task in TASKS)]]
    for start, peer in (
        (f"`LadaAttention`, D = {span(widths, '{}').replace('–', ' … ')}, as the official layer", "official"),
        ("… as fused dot-product attention", "sdpa fused"),
        ("… as linear attention", "linear"),
        ("… as Fastformer", "fastformer"),
    ):
        lines.append([start, *(cell(those, peer, "{:.2f}", "x") for those in rows)])
    if fractions:
        lines.append(
            [
                "… saved activations, of the official layer's",
                "",
                span([100 * fraction for fraction in fractions], "{:.0f}", "%"),
                "",
            ]
        )
    return lines


def summary_of_training(record: Record) -> list[list[str]]:
    """Of our variants of the first backend, in contiguous tensors."""
    lines = []
    for row in rows_of(record, "models", task="training step"):
        names = [name for name in row.times if is_ours(name) and not name.endswith("channels_last")]
        first = [name for name in names if name.rpartition(" ")[0] == names[0].rpartition(" ")[0]]
        cells = [f"{name} {times(speedup(row, name, 'official'))}" for name in first[:3]]
        what = f"LadaGAN, {row.case['pixels']} pixels, batch {row.case['batch']}: training step with R1, as the official"
        lines.append([what, *cells, *[""] * (3 - len(cells))])
    return lines


def cell(rows: list[Row], peer: str, pattern: str, unit: str) -> str:
    """How many times faster the first of ours was than the peer, from the least to the most over the rows."""
    values = [value for row in rows for name in ours([row])[:1] if (value := speedup(row, name, peer)) is not None]
    if values:
        return span(values, pattern, unit)
    reasons = [row.absent[peer] for row in rows if peer in row.absent]
    return "–" if not reasons or any(reason.startswith("left out") for reason in reasons) else "cannot"


def caption(record: Record) -> str:
    refused = sum(row.refused is not None for row in record.rows)
    text = (
        f"Medians of interleaved calls in one process on {machine(record)}, with torch {record.machine['versions']['torch']}."
    )
    return text + (f" Refused a time: {refused} of {len(record.rows)} cases." if refused else "")


# ---- the complete tables ----


def block(suite: str, tables: Callable[[list[Row]], Iterable[str]], picture: str = "") -> Callable[[Records, str], str]:
    """For each results file that has the suite its picture, its tables, and who has no time in them."""

    def text(records: Records, folder: str) -> str:
        parts = []
        for name, record in records.items():
            if rows := rows_of(record, suite):
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


def no_gpu(records: Records) -> list[str]:
    return [] if any(record.device == "cuda" for record in records.values()) else [NO_GPU]


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
    """Times and peak memory, a column for each contestant."""
    names = list(dict.fromkeys(name for row in rows for name in row.times))
    peaks = [row.figures.get("peak bytes", {}) for row in rows]
    tokens = [f"{row.case['shape'][1]:,}" for row in rows]
    medians = [[duration(row.times[name]) if name in row.times else "–" for name in names] for row in rows]
    yield table(["tokens, time", *names], [[n, *line] for n, line in zip(tokens, medians, strict=True)])
    memory = [[mebibytes(peak.get(name)) for name in names] for peak in peaks]
    yield table(["tokens, peak MiB", *names], [[n, *line] for n, line in zip(tokens, memory, strict=True)])


def model_lines(row: Row) -> Iterable[list[str]]:
    case, peaks = row.case, row.figures.get("peak bytes", {})
    for name in sorted(row.times, key=PEERS.__contains__):
        yield [
            *(str(case["pixels"]), str(case["batch"]), case["task"], name, duration(row.times[name])),
            digits(row.figures["images/s"][name]),
            *(times(speedup(row, name, peer)) for peer in ("official", "official bfloat16")),
            mebibytes(peaks.get(name)),
        ]


def overhead_lines(row: Row) -> Iterable[list[str]]:
    for name in ours([row]):
        shown = (duration(row.times[who]) if who in row.times else "–" for who in (name, "plain"))
        yield [row.case["call"], row.case["mode"], name, *shown, times(speedup(row, name, "plain"))]


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
        newest = {record.device: (name, record) for name, record in sorted(records.items(), key=lambda item: item[1].date)}
        return "\n\n".join(part for name, record in newest.values() for part in show(name, record, picture, folder))

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
    "scaling": block("scaling", scaling_tables, "scaling"),
    "models": block(
        "models",
        one_table(
            *("pixels", "batch", "task", "who", "time", "images/s"),
            *("as fast as official", "as fast as official bfloat16", "peak MiB"),
            lines=model_lines,
        ),
        "speedups",
    ),
    "overhead": block("overhead", one_table("call", "mode", "who", "time", "plain", "as fast as plain", lines=overhead_lines)),
    "floors": block("floors", one_table(*CALL, "share", "launch floors", lines=floor_lines)),
}
