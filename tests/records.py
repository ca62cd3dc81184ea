"""A record of the benchmarks made by hand: every suite, with times that are easy to reckon with."""

from benchmarks.record import Record, Row, Timing

MIB = 2**20
CPU = {"name": "A CPU", "cores": 2, "threads": 2, "kernels": {"instruction_set": "avx512"}}


def timing(milliseconds: float) -> Timing:
    return Timing(milliseconds / 1e3, milliseconds / 1.1e3, milliseconds / 0.9e3, 11)


def row(suite: str, case: dict, times: dict[str, float], **figures) -> Row:
    return Row(suite, case, 1e-5, times={name: timing(value) for name, value in times.items()}, figures=figures)


def small_record(device: str = "cpu") -> Record:
    """On a CPU `ours` takes part, on a GPU `cuda` and `triton`, which takes twice as long."""
    gpus = [{"name": "A GPU"}] if device == "cuda" else []
    machine = {"versions": {"torch": "2.13.0"}, "devices": {"cpu": CPU, "cuda": {"devices": gpus}}}
    record = Record("python -m benchmarks", "2026-01-02T03:04:05", "0123456789", False, "as it is", device, machine)

    def ours(milliseconds: float, suffix: str = "") -> dict[str, float]:
        if device == "cuda":
            return {f"cuda{suffix}": milliseconds, f"triton{suffix}": 2 * milliseconds}
        return {suffix.strip() or "ours": milliseconds}

    for order, copy in (("forward", 4.0), ("backward", 7.0), ("double backward", 11.0)):
        for shape in ([2, 8, 16, 4], [4, 8, 16, 4]):
            times = {**ours(2 * copy), "plain": 6 * copy, "copy": copy}
            absent = {}
            if order != "double backward" and shape[0] == 2:
                times["compiled"] = 5 * copy
            elif order == "double backward":
                absent["compiled"] = "RuntimeError: not twice"
            case = {"op": "additive_attention", "shape": shape, "dtype": "float32", "order": order}
            share = {name: copy / value for name, value in times.items()}
            rate = dict.fromkeys(times, 30.0)
            record.rows.append(row("ops", case, times, share=share, **{"GB/s": rate, "peak bytes": dict.fromkeys(times, MIB)}))
            record.rows[-1].absent = absent
    for width, gain in ((64, 1.5), (1024, 1.25)):
        for task in ("forward", "forward+backward", "R1"):
            times = {**ours(4.0), "official": 4 * gain, "linear": 8.0, "fastformer": 6.0, "matmul": 11.0}
            times |= {} if task == "R1" else {"sdpa fused": 10.0, "compiled": 5.0}
            figures = {"matmul share": dict.fromkeys(ours(0), 0.5), "peak bytes": dict.fromkeys(times, 2 * MIB)}
            if task == "forward+backward":
                figures["saved bytes"] = {**dict.fromkeys(ours(0), 3 * MIB), "official": 6 * MIB}
            case = {"layer": "LadaAttention", "shape": [2, 8, width], "task": task}
            record.rows.append(row("attention", case, times, **figures))
            if task == "R1":
                record.rows[-1].absent = {"sdpa fused": "RuntimeError: not implemented", "compiled": "left out for time"}
    for tokens in (64, 256, 1024):
        times = {**ours(tokens / 64), "official": tokens / 32, "sdpa fused": (tokens / 128) ** 2, "linear": tokens / 40}
        times |= {} if tokens == 1024 else {"DotProductAttention": (tokens / 96) ** 2, "L2Attention": (tokens / 90) ** 2}
        case = {"layer": "LadaAttention", "shape": [1, tokens, 16], "task": "forward+backward"}
        record.rows.append(row("scaling", case, times, **{"peak bytes": {name: tokens * MIB for name in times}}))
    times = {**ours(3.0), "official": 9.0, "sdpa math": 30.0, "DotProductAttention": 20.0, "L2Attention": 21.0}
    peaks = dict.fromkeys(times, 128 * MIB) | {"sdpa math": 8192 * MIB}
    record.rows.append(row("scaling", case | {"shape": [1, 64, 16], "task": "R1"}, times, **{"peak bytes": peaks}))
    for task in ("G step", "training step"):
        times = {"official": 20.0, **ours(16.0, " float32"), **ours(10.0, " bfloat16")}
        if task == "training step":
            times |= {**ours(8.0, " float32 channels_last")}
        else:
            times |= {"official bfloat16": 12.5}
        case = {"model": "LadaGAN", "pixels": 64, "batch": 4, "task": task}
        record.rows.append(row("models", case, times, **{"images/s": {name: 4e3 / value for name, value in times.items()}}))
    for pixels in (32, 64):
        for task, milliseconds in (("images", 10.0), ("training step", 250.0)):
            families = {"LadaGAN": milliseconds, "ViTGAN": 2 * milliseconds, "ViTGAN with StyleGAN2's D": 4 * milliseconds}
            figures = {
                "images/s": {name: 4e3 / value for name, value in families.items()},
                "peak bytes": {name: value * MIB for name, value in families.items()},
            }
            if task == "training step":
                sizes = {"G parameters": 12_500_000, "D parameters": 7_000_000, "G multiply-adds": 25e8, "D multiply-adds": 4e8}
                figures |= {name: dict.fromkeys(families, value) for name, value in sizes.items()}
            case = {"pixels": pixels, "batch": 4, "task": task}
            record.rows.append(row("families", case, families | {"matmul": 5.0}, **figures))
    record.rows.append(row("overhead", {"call": "gated_product", "mode": "no gradients"}, {**ours(0.02), "plain": 0.005}))
    case = {"call": "LadaAttention", "shape": [2, 8, 16, 4], "task": "loss + R1"}
    record.rows.append(row("compiled", case, {**ours(7.0), "plain": 21.0, "compiled": 14.0}))
    if device == "cuda":
        case = {"op": "additive_attention", "shape": [2, 8, 16, 4], "dtype": "float32", "order": "forward"}
        times = {**ours(0.01), "plain": 0.05, "copy": 0.005, "empty": 0.002}
        figures = {"share": {n: 0.005 / v for n, v in times.items()}, "floors": {n: v / 0.002 for n, v in times.items()}}
        record.rows.append(row("floors", case, times, **figures))
    record.suites = list(dict.fromkeys(row.suite for row in record.rows))
    return record
