"""Judge a run: ``python -m lada_kernels.evaluate CHECKPOINT --inception FILE_OR_URL``.

FID, KID, precision and recall of the averaged generator's samples, rounded to bytes as in a PNG, against the images that it
was trained on, in the features of the TF-ported Inception: a TorchScript file, of which NVIDIA publishes one. Without it
only runs on the digits can be judged, in the features of a classifier that is trained on those (seconds); the Fréchet
distance there is not FID: compare it with nothing but itself. docs/evaluating.md says what is comparable with what.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lada_kernels.training import checkpoint
from lada_kernels.training.config import Config, from_dict
from lada_kernels.training.data import load_images
from lada_kernels.training.errors import import_extra, one_line_errors
from lada_kernels.training.evaluation import SAMPLES, Evaluator, choose_features
from lada_kernels.training.features import DigitFeatures
from lada_kernels.training.metrics import histogram
from lada_kernels.training.sampling import averaged_generator
from lada_kernels.training.trainer import build_generator, pick_device

DIGIT_SAMPLES = 2000


def judge_digits(evaluator: Evaluator, generator: nn.Module, untrained: nn.Module) -> dict[str, Any]:
    """Figures in the classifier's features, of G as training began too."""
    net = evaluator.net
    before = evaluator.figures(evaluator.features(untrained))
    features = evaluator.features(generator)
    after = evaluator.figures(features)
    return {
        "samples": evaluator.samples,
        "classifier_accuracy": net.accuracy,
        "class_histogram": histogram(net.classifier, features),
        "frechet_untrained": before["frechet"],
        "frechet_trained": after["frechet"],
        "frechet_ratio": before["frechet"] / after["frechet"],
    }


def judge(evaluator: Evaluator, generator: nn.Module) -> dict[str, Any]:
    """Figures in the features of a TorchScript file, and what they depend on."""
    net = evaluator.net
    return {
        "samples": evaluator.samples,
        "real_images": len(evaluator.images),
        "seed": evaluator.seed,
        "net": net.path.name,
        "net_sha256": net.identity,
        "net_features": net.width,
        **evaluator.evaluate(generator),
    }


def describe_digits(figures: dict[str, Any]) -> Iterator[str]:
    """`judge_digits`'s figures in lines for people."""
    yield f"classifier: {figures['classifier_accuracy']:.1%} on held-out real digits"
    for digit, count in enumerate(figures["class_histogram"]):
        yield f"  {digit}: {count:5d}  {'#' * round(200 * count / figures['samples'])}"
    yield "Fréchet distance to the real digits, in the classifier's features (not FID):"
    yield f"  untrained {figures['frechet_untrained']:.1f}"
    change = f"{figures['frechet_ratio']:.1f}x less" if figures["frechet_ratio"] > 1 else "no less"
    yield f"  step {figures['step']} {figures['frechet_trained']:.2f}: {change}"


def describe(figures: dict[str, Any]) -> Iterator[str]:
    """`judge`'s figures in lines for people."""
    yield f"step {figures['step']}: {figures['samples']:,} samples against {figures['real_images']:,} real images"
    if "fid" in figures:
        yield f"  FID       {figures['fid']:.2f}"
        yield f"  KID       {figures['kid']:.5f} ± {figures['kid_std']:.5f}"
    else:
        yield f"  Fréchet distance {figures['frechet']:.4g}, not FID: {figures['net']} has {figures['net_features']} features"
    yield f"  precision {figures['precision']:.3f}"
    yield f"  recall    {figures['recall']:.3f}"


def real_images(config: Config, folder: Path) -> Tensor:
    """The images of ``config.data``; a large set's pixels go to a temporary file in ``folder``, not to a running training's."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="evaluate-") as spill:  # mapped pixels outlive their name
        return load_images(config.data.source, config.img_size, config.data.memory_gib, Path(spill) / "images.uint8")


def main() -> None:
    """Print the figures and write them next to the checkpoint."""
    tyro = import_extra("tyro")

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        checkpoint: Annotated[Path, tyro.conf.Positional]
        """checkpoint file, or run folder"""
        inception: str = ""
        """path or URL of the TF-ported Inception as a TorchScript file"""
        inception_sha256: str = ""
        """SHA-256 of that file, or how it begins; default: not checked"""
        data: str = ""
        """real images, as data.source names them in training; default: what the run was trained on"""
        samples: int | None = None
        """images to generate; default 10,000, or 2,000 in the features of the digits' classifier"""
        batch_size: int = 64
        """images at a time"""
        seed: int = 0
        """of the latents"""
        device: str = "auto"
        """auto, cpu or cuda"""

    args = tyro.cli(Arguments, description=__doc__)
    state = checkpoint.read_latest(args.checkpoint)
    config = from_dict(state["config"])
    if args.data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=args.data))
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    device = pick_device(args.device)

    net = choose_features(config, args.inception, args.inception_sha256)  # what is missing is said before anything is loaded
    digits = isinstance(net, DigitFeatures)
    samples = args.samples if args.samples is not None else DIGIT_SAMPLES if digits else SAMPLES
    images = real_images(config, folder)
    evaluator = Evaluator(net, images, folder / "real_statistics", samples=samples, batch_size=args.batch_size, seed=args.seed)
    generator = averaged_generator(state, args.device)
    figures = {"step": state["iter"]}
    if digits:
        torch.manual_seed(config.seed)
        figures |= judge_digits(evaluator, generator, build_generator(config).to(device))  # as training began
    else:
        figures |= {"data": config.data.source} | judge(evaluator, generator)
    out = folder / "evaluation.json"
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(describe_digits(figures) if digits else describe(figures)))
    print(f"written to {out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
