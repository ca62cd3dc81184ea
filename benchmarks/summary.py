"""The README's blocks: what tells most, in short."""

from collections.abc import Iterator

from benchmarks.cases import ORDERS
from benchmarks.formats import NOT_YET, Records, by_x, count, digits, mebibytes, newest, no_gpu, span, table, times
from benchmarks.reading import is_ours, machine, ours, rows_of, speedup
from benchmarks.record import Record, Row
from benchmarks.tasks import TASKS


def summary(records: Records, folder: str) -> str:
    """The newest results of each kind of device, in short."""
    return "\n\n".join([summary_of(record) for _, record in newest(records).values()] + no_gpu(records))


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
        prefix = names[0].removesuffix("float32") if names else ""
        first = [name for name in names if name in (f"{prefix}float32", f"{prefix}bfloat16", f"{prefix}bfloat16 recorded")]
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


def families(records: Records, folder: str) -> str:
    """The families' models and training steps by the newest results of each kind of device."""
    return "\n\n".join([families_of(record) for _, record in newest(records).values()] + no_gpu(records))


def families_of(record: Record) -> str:
    rows = rows_of(record, "families", task="training step")
    if not rows:
        return f"{machine(record)}: {NOT_YET[0].lower()}{NOT_YET[1:]}"
    header = [f"{machine(record)}, float32", "parameters, G + D", "multiply-adds per image, G + D"]
    lines = [line for row in rows for line in family_lines(row)]
    refused = "".join(f"\n\nRefused a time: {row.refused}" for row in rows if row.refused)
    return table([*header, "training step", "images/s", "peak MiB"], lines) + refused


def family_lines(row: Row) -> Iterator[list[str]]:
    case, figures = row.case, row.figures
    for name in ours([row]):
        yield [
            f"{name}, {case['pixels']} pixels, batch {case['batch']}",
            *(" + ".join(count(figures[f"{part} {what}"][name]) for part in "GD") for what in ("parameters", "multiply-adds")),
            f"{digits(1e3 * row.times[name].median)} ms",
            digits(figures["images/s"][name]),
            mebibytes(figures["peak bytes"][name]),
        ]
