"""Take up official LadaGAN weights: ``python -m lada_kernels.convert SOURCE --out FOLDER``.

SOURCE is a checkpoint of the official PyTorch code, ``last_ckpt.pt`` or ``best_ckpt.pt``, or of the official TensorFlow code:
the folder with its file named ``checkpoint``, or one checkpoint in it, as ``ckpt-12`` or ``ckpt-12.index``. TensorFlow is not
needed. FOLDER then is one that ``sample``, ``evaluate`` and ``export`` read; it holds weights, and cannot be resumed.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from lada_kernels.training import checkpoint
from lada_kernels.training.config import save_config, to_dict
from lada_kernels.training.errors import TrainingError, import_extra, one_line_errors
from lada_kernels.training.official import Weights, read_pytorch
from lada_kernels.training.tensorflow_weights import find_checkpoint, read_tensorflow


def read(source: Path) -> Weights:
    """Read an official checkpoint of either kind; ``TrainingError`` says what is wrong with it."""
    if source.is_dir():
        return read_tensorflow(find_checkpoint(source))
    if source.suffix == ".index":
        return read_tensorflow(source.with_suffix(""))
    if Path(f"{source}.index").is_file():
        return read_tensorflow(source)
    return read_pytorch(source)


def as_run(weights: Weights, source: Path) -> dict[str, Any]:
    """The weights as a checkpoint of ours. What a run goes on from is empty, and its data are named as no run's are."""
    state = {"iter": weights.iteration, **weights.states, "config": to_dict(weights.config)}
    return {
        **state,
        "g_opt": {},
        "d_opt": {},
        "rng": {},
        "sampler": {},
        "logit_means": {},
        "data": {"converted from": str(source)},
        "best": {},
    }


def main() -> None:
    """Write the folder, and say what was found."""
    tyro = import_extra("tyro")

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        source: Annotated[Path, tyro.conf.Positional]
        """official checkpoint, see above"""
        out: Path
        """folder to write"""

    args = tyro.cli(Arguments, description=__doc__)
    if checkpoint.exists(args.out):
        raise TrainingError(f"out: {args.out} already holds a run; name another folder")
    weights = read(args.source)
    save_config(weights.config, args.out / "config.json")
    checkpoint.write(as_run(weights, args.source), args.out)
    img_size, flavor = weights.config.img_size, weights.config.generator.flavor
    print(f"{args.out}: LadaGAN of {img_size} pixels, flavor {flavor}, step {weights.iteration}")


if __name__ == "__main__":
    with one_line_errors():
        main()
