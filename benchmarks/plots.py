"""Pictures of a results file as SVG: equal results and an equal matplotlib give equal bytes.

Each carries a mark of what it was drawn from, by which `benchmarks.report --check` knows whether it is out of date: another
version of matplotlib would draw other bytes.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.cases import ORDERS
from benchmarks.reading import crossing, curve, is_ours, machine, ours, rows_of, speedup
from benchmarks.record import Record, Row
from benchmarks.rivals import QUADRATIC

# Colours that the colour-blind can tell apart, by Okabe and Ito; blues are ours.
BLUES = ("#0072B2", "#56B4E9", "#00335C", "#A6D4F2")
GREY, ORANGE, VERMILION, PURPLE, GREEN = "#8C8C8C", "#E69F00", "#D55E00", "#CC79A7", "#009E73"
PEERS = {
    "plain": GREY,
    "official": GREY,
    "official bfloat16": "#BFBFBF",
    "compiled": ORANGE,
    "official, G compiled": ORANGE,
    "sdpa fused": VERMILION,
    "sdpa math": PURPLE,
    "linear": GREEN,
}
LINES = PEERS | {"DotProductAttention": VERMILION, "L2Attention": "#7A3B00"}
NAMES = {
    "ours": "LadaAttention",
    "official": "official LadaGAN",
    "sdpa fused": "fused dot-product",
    "sdpa math": "unfused dot-product",
    "linear": "linear attention",
    "DotProductAttention": "our DotProductAttention",
    "L2Attention": "our L2Attention",
}
STYLE = {
    "svg.hashsalt": "lada_kernels",
    "svg.fonttype": "path",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "hatch.linewidth": 0.6,
    "savefig.facecolor": "white",  # to be read in dark mode, too
}
WIDTH = 10.0  # inches
HATCH = "////"  # of channels_last
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # of a text that a line may cross
Bars = dict[str, list[float | None]]  # by contestant, a value for each group; None: it has no time


@dataclass(frozen=True)
class Picture:
    """What there is to draw of a record, if it holds enough."""

    title: str
    possible: Callable[[Record], bool]
    draw: Callable[[Record], Figure]


def pictures(record: Record) -> dict[str, Picture]:
    return {name: picture for name, picture in PICTURES.items() if picture.possible(record)}


def mark(record: Record) -> str:
    """Of all that a picture follows from but matplotlib."""
    source = json.dumps([record.device, record.machine, [asdict(row) | {"readings": {}} for row in record.rows]])
    return "drawn from " + hashlib.sha256((source + Path(__file__).read_text()).encode()).hexdigest()


def svg(record: Record, name: str) -> bytes:
    """The picture of that name."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None, "Title": PICTURES[name].title, "Description": mark(record)}
        PICTURES[name].draw(record).savefig(out, format="svg", metadata=metadata)
    return out.getvalue()


def heading(figure: Figure, text: str, record: Record) -> None:
    figure.suptitle(f"{text} — {machine(record)}", x=0.01, ha="left", fontsize=11, fontweight="bold")


# ---- time and memory over tokens ----


def additive(rows: Sequence[Row]) -> list[str]:
    return [name for name in ours(rows) if name not in QUADRATIC]


def draw_scaling(record: Record) -> Figure:
    rows = rows_of(record, "scaling", task="forward+backward")
    leaders = additive(rows)
    colours = LINES | dict(zip(leaders, BLUES, strict=False))
    others = ("official", "linear", "sdpa math", "sdpa fused", *QUADRATIC)
    names = [name for name in (*leaders, *others) if len(curve(record, name)) > 1]
    figure = Figure((WIDTH, 4.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name in names:
        label = NAMES.get(name, f"LadaAttention, {name}")
        look = {"color": colours[name], "marker": "o", "markersize": 3.5, "label": label, "linewidth": 1.5}
        look |= {"linewidth": 2.6, "zorder": 3} if name in leaders else {}
        look |= {"linestyle": "--"} if name == "official" else {"linestyle": ":", "marker": "s"} if name in QUADRATIC else {}
        time.plot(*zip(*[(tokens, seconds * 1e3) for tokens, seconds in curve(record, name)], strict=True), **look)
        peaks = [(row.case["shape"][1], row.figures["peak bytes"][name] / 2**20) for row in rows if name in row.times]
        memory.plot(*zip(*sorted(peaks), strict=True), **look)
    for axes, title in ((time, "milliseconds"), (memory, "peak memory, MiB")):
        log_log(axes)
        axes.set_title(title)
        axes.set_xlabel("tokens")
    mark_crossing(time, curve(record, leaders[0]), curve(record, "sdpa fused"))
    channels = rows[0].case["shape"][2]
    heading(figure, f"One attention layer, forward + backward, batch 1, {channels} channels, float32", record)
    columns = len(names) if len(names) < 6 else -(-len(names) // 2)
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def log_log(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    ticks = [4**power for power in range(12) if axes.get_xlim()[0] <= 4**power <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def mark_crossing(axes: Axes, one: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> None:
    if (tokens := crossing(one, other)) is None:
        return
    (left, below), (right, above) = next(pair for pair in pairwise(one) if pair[0][0] <= tokens < pair[1][0])
    milliseconds = 1e3 * below * (above / below) ** (math.log(tokens / left) / math.log(right / left))
    axes.plot([tokens], [milliseconds], "o", markersize=10, markerfacecolor="none", markeredgecolor="black", zorder=4)
    axes.annotate(
        f"from {tokens:,.0f} tokens on faster\nthan fused dot-product",
        (tokens, milliseconds),
        xytext=(0.03, 0.97),
        textcoords="axes fraction",
        va="top",
        arrowprops={"arrowstyle": "-", "linewidth": 0.8, "shrinkB": 6},
    )


# ---- bars ----


def draw_bars(axes: Axes, groups: Sequence[str], bars: Bars, pattern: str, hold: bool = False) -> None:
    """Groups from the top down, in each the bars of all who have a value, which is written beside them.

    `hold`: a bar without a value keeps its place, so that panels side by side are aligned.
    """
    colours, y, places = colours_of(list(bars)), 0.0, []
    for group in range(len(groups)):
        shown = [(name, values[group]) for name, values in bars.items() if hold or values[group] is not None]
        for line, (name, value) in enumerate(shown):
            hatch = HATCH if name.endswith("channels_last") else None
            axes.barh(y + line, value or 0, 0.8, color=colours[name], hatch=hatch, edgecolor="white", linewidth=0)
            text = "no time" if value is None else pattern.format(value)
            place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (value or 0, y + line), **place, fontsize=8, bbox=BEHIND)
        places.append(y + (len(shown) - 1) / 2)
        y += len(shown) + 0.7
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, groups)
    axes.tick_params("y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.01)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Ours in blues, in channels_last the same, the others in their own."""
    variants = list(dict.fromkeys(name.removesuffix(" channels_last") for name in names if is_ours(name)))
    return PEERS | {name: BLUES[variants.index(name.removesuffix(" channels_last")) % 4] for name in names if is_ours(name)}


def add_legend(figure: FigureBase, names: Sequence[str], columns: int) -> None:
    colours = colours_of(names)
    hatches = {name: HATCH if name.endswith("channels_last") else None for name in names}
    patches = [Patch(facecolor=colours[n], hatch=hatches[n], edgecolor="white", linewidth=0, label=n) for n in names]
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False)


def timed(rows: Sequence[Row], others: Sequence[str]) -> list[str]:
    """Ours, then those of the others who have a time in any row."""
    return ours(rows) + [name for name in others if any(name in row.times for row in rows)]


def draw_shares(record: Record) -> Figure:
    shape, dtype = common_case(record)
    rows = rows_of(record, "ops", shape=shape, dtype=dtype)
    ops, names = list(dict.fromkeys(row.case["op"] for row in rows)), timed(rows, ("compiled", "plain"))
    figure = Figure((WIDTH, 1.4 + 0.18 * len(ops) * (len(names) + 0.7)), layout="constrained")
    for column, (axes, order) in enumerate(zip(figure.subplots(1, len(ORDERS), sharex=True), ORDERS, strict=True)):
        found = {row.case["op"]: row for row in rows if row.case["order"] == order}
        bars: Bars = {name: [speedup(found[op], name, "copy") if op in found else None for op in ops] for name in names}
        groups = ["" if column else op.replace(", ", ",\n") for op in ops]
        draw_bars(axes, groups, bars, "{:.2f}", hold=True)
        axes.set_title(order)
    heading(figure, f"Share of the byte bound, 1: a copy, at {'×'.join(map(str, shape))}, {dtype}", record)
    add_legend(figure, names, len(names))
    return figure


def common_case(record: Record) -> tuple[list[int], str]:
    """The shape and dtype at which most has been timed."""
    counts: dict[tuple, int] = {}
    for row in rows_of(record, "ops"):
        key = (tuple(row.case["shape"]), row.case["dtype"])
        counts[key] = counts.get(key, 0) + len(row.times)
    shape, dtype = max(counts, key=lambda key: counts[key])
    return list(shape), dtype


def draw_speedups(record: Record) -> Figure:
    """Of the layer and of whole models."""
    layers, models = rows_of(record, "attention"), rows_of(record, "models")
    panels = [
        ("LadaAttention, B×N×D, float32", layers, timed(layers, ("compiled",)), layer_of),
        ("LadaGAN (the official one in float32 is 1)", models, timed(models, ("official bfloat16", "compiled")), model_of),
    ]
    lines = max(sum(len(row.times.keys() & set(names)) + 0.7 for row in rows) for _, rows, names, _ in panels)
    figure = Figure((WIDTH, 1.6 + 0.15 * lines), layout="constrained")
    for part, (title, rows, names, group) in zip(figure.subfigures(1, 2), panels, strict=True):
        axes = part.subplots()
        bars: Bars = {name: [speedup(row, name, "official") for row in rows] for name in names}
        draw_bars(axes, [group(row) for row in rows], bars, "{:.2f}x", hold=rows is layers)
        axes.set_title(title)
        add_legend(part, names, 3 if max(map(len, names)) < 18 else 2)
    heading(figure, "Times as fast as the official composition", record)
    return figure


def layer_of(row: Row) -> str:
    return f"{'×'.join(map(str, row.case['shape']))}\n{row.case['task'].replace('+', ' + ')}"


def model_of(row: Row) -> str:
    return f"{row.case['pixels']} pixels, batch {row.case['batch']}\n{row.case['task']}"


def has(suite: str) -> Callable[[Record], bool]:
    return lambda record: bool(ours(rows_of(record, suite)))


def has_curve(record: Record) -> bool:
    return sum(bool(additive([row])) for row in rows_of(record, "scaling", task="forward+backward")) > 1


PICTURES = {
    "scaling": Picture("Time and memory of attention layers over tokens", has_curve, draw_scaling),
    "shares": Picture("Share of the byte bound that each op reaches", has("ops"), draw_shares),
    "speedups": Picture(
        "Speed of LadaAttention and LadaGAN over the official composition",
        lambda record: has("attention")(record) and has("models")(record),
        draw_speedups,
    ),
}
