"""What the smoke test finds, in one table: a line for each backend and op, a column for each dtype and order.

    verdict {"backend": "cuda", "op": "gated_product", "dtype": "float32", "order": "forward", "found": 0.2}

`found`: the worst error in units of its bound, or the class of an exception, or why the backend cannot run.
"""

import itertools
import json
from collections.abc import Iterable, Sequence

BACKENDS = ("cuda", "triton")
OPS = ("additive_pool", "additive_attention", "gated_projection", "modulated_layer_norm", "gated_product")  # slow ones first
DTYPES = ("float32", "bfloat16", "float16", "float64")
ORDERS = {"forward": "forward", "backward": "backward", "double backward": "double"}  # and what a column is called
WITHOUT = {("cuda", "float64")}  # what a backend does not compute in
SIGN = "verdict "

Place = tuple[str, str, str, str]


def places() -> list[Place]:
    """Every backend, op, dtype and order that there is a verdict on."""
    product = itertools.product(BACKENDS, OPS, DTYPES, ORDERS)
    return [place for place in product if (place[0], place[2]) not in WITHOUT]


def line(place: Place, found: float | str) -> str:
    return SIGN + json.dumps(dict(zip(("backend", "op", "dtype", "order"), place, strict=True)) | {"found": found})


def read(logs: Iterable[str]) -> dict[Place, float | str]:
    """What these logs say of each place."""
    told = [json.loads(text.removeprefix(SIGN)) for log in logs for text in log.splitlines() if text.startswith(SIGN)]
    return {(one["backend"], one["op"], one["dtype"], one["order"]): one["found"] for one in told}


def is_right(found: float | str | None) -> bool:
    return isinstance(found, float) and found <= 1


def cell(found: float | str | None) -> str:
    if isinstance(found, float):
        return "ok" if is_right(found) else f"{found:.3g}"
    return found or "not run"


def table(found: dict[Place, float | str], expected: Sequence[Place]) -> str:
    """A cell says "ok", by how many times its bound the worst error is too large, what was raised, or "not run"."""
    columns = [(dtype, order) for dtype in DTYPES for order in ORDERS if any(place[2:] == (dtype, order) for place in expected)]
    rows = [["", "", *(dtype if order == "forward" else "" for dtype, order in columns)]]
    rows += [["backend", "op", *(ORDERS[order] for _, order in columns)]]
    for backend, op in dict.fromkeys(place[:2] for place in expected):
        here = [(backend, op, *column) for column in columns]
        cells = [cell(found.get(place)) if place in expected else "-" for place in here]
        said = {one for one in cells if one != "-"}
        rows.append([backend, op, *([said.pop()] if len(said) == 1 and said.isdisjoint({"ok", "not run"}) else cells)])
    widths = [max(len(row[i]) for row in rows if i < len(row) and len(row) > 3) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)).rstrip() for row in rows)
