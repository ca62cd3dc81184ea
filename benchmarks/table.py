"""The README's table of figures, from a results file: `python -m benchmarks.table`."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cpu-foundation.json"


def table(path: Path = RESULTS) -> str:
    """Markdown rows; every cell is the range over the shapes of its rows."""
    rows = json.loads(path.read_text())["rows"]

    def cell(pattern: str, figure: str, unit: str, **wanted: Any) -> str:
        values = [row["figures"][figure] for row in rows if wanted.items() <= row["case"].items()]
        low, high = (pattern.format(value) for value in (min(values), max(values)))
        return (low if low == high else f"{low}–{high}") + unit

    def orders(pattern: str, figure: str, unit: str) -> list[str]:
        cases = ("forward", "backward", "double backward")
        return [cell(pattern, figure, unit, op="additive_attention", dtype="float32", order=order) for order in cases]

    def module(task: str, figure: str = "speedup", pattern: str = "{:.2f}", unit: str = "x") -> str:
        return cell(pattern, figure, unit, module="LadaAttention", task=task)

    step = {name: cell("{:.2f}", f"speedup {name}", "x", step="LadaGAN") for name in ("float32", "bfloat16")}
    lines = [
        ["CPU, 2 threads, float32, against plain torch", "forward", "backward", "double backward"],
        ["---"] * 4,
        ["`additive_attention`, five shapes: times as fast", *orders("{:.1f}", "speedup", "x")],
        ["… share of the byte bound", *orders("{:.2f}", "share", "")],
        ["", "forward + backward", "R1 step", "saved activations"],
        [
            "`LadaAttention`, D = 64 … 1024: times as fast",
            module("forward+backward"),
            module("R1"),
            module("forward+backward", "saved", "{:.0%}", ""),
        ],
        ["LadaGAN-64 training step, R1 every step, batch 16", f"{step['float32']} float32", f"{step['bfloat16']} bfloat16", ""],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(table())
