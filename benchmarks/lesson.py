"""What ViTGAN's regularisation of D is for: python -m benchmarks.lesson [--steps N] [--out FOLDER].

Trains the preset vitgan-digits twice from one seed: as it is, with attention by distance, improved spectral normalisation and
balanced consistency, and with dot-product attention and none of the three. Writes what D's gradient and the samples did,
vitgan-lesson.json, and draws it, vitgan-lesson.svg. Takes twice as long as the preset.
"""

import argparse
import dataclasses
import io
import json
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tqdm import trange

from benchmarks.plots import BLUES, STYLE, VERMILION, WIDTH
from benchmarks.record import start_record
from lada_kernels.training.config import Config
from lada_kernels.training.data import load_digits, to_float
from lada_kernels.training.loop import fixed_latents, sample
from lada_kernels.training.metrics import DigitClassifier, frechet_distance, train_classifier
from lada_kernels.training.presets import PRESETS
from lada_kernels.training.progress import METRICS
from lada_kernels.training.trainer import Trainer

DOCS = Path(__file__).parents[1] / "docs"
NAME = "vitgan-lesson"
REGULARISED, PLAIN = "tied L2 attention, ISN, bCR", "dot-product attention, plain"
INTERVAL = 20  # steps that one point of a curve stands for
JUDGED = 10  # times that the samples are, in a run
SAMPLES = 1000


def arms(config: Config) -> dict[str, Config]:
    """Both configurations."""
    discriminator = dataclasses.replace(config.discriminator, attention="dot", spectral_norm=False)
    optim = dataclasses.replace(config.optim, bcr_real=0.0, bcr_fake=0.0)
    return {REGULARISED: config, PLAIN: dataclasses.replace(config, discriminator=discriminator, optim=optim)}


def train(config: Config, steps: int, classifier: DigitClassifier, images: torch.Tensor) -> dict[str, list]:
    """Curves: the median and the largest of each metric in every interval; the Fréchet distance of the averaged generator.

    They end where a metric is no longer finite.
    """
    trainer = Trainer(config, images)
    real = classifier.features(to_float(images))
    latents = fixed_latents(SAMPLES, config.generator.noise_dim, config.seed)
    curves = {"step": [], "median": {name: [] for name in METRICS}, "largest": {name: [] for name in METRICS}}
    curves |= {"judged at": [], "frechet": []}
    metrics = []
    for _ in trange(steps):
        metrics.append(trainer.step())
        if not metrics[-1].isfinite().all():
            break
        if len(metrics) == INTERVAL or trainer.iteration == steps:
            values = torch.stack(metrics)  # [INTERVAL, metrics]
            curves["step"].append(trainer.iteration)
            for name, median, largest in zip(METRICS, values.median(0).values.tolist(), values.amax(0).tolist(), strict=True):
                curves["median"][name].append(median)
                curves["largest"][name].append(largest)
            metrics = []
        if trainer.iteration % max(1, steps // JUDGED) == 0:
            features = classifier.features(sample(trainer.ema, latents).clamp(-1, 1))
            if features.isfinite().all():
                curves["judged at"].append(trainer.iteration)
                curves["frechet"].append(frechet_distance(real, features))
    return curves


def draw(results: dict) -> bytes:
    """The picture, as SVG."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    loss, gradient, quality = figure.subplots(1, 3)
    for (name, curves), colour in zip(results["runs"].items(), (BLUES[0], VERMILION), strict=True):
        median, largest = (curves[kind]["d_grad_norm"] for kind in ("median", "largest"))
        loss.plot(curves["step"], curves["median"]["d_loss"], color=colour, label=name)
        gradient.fill_between(curves["step"], median, largest, color=colour, alpha=0.25, linewidth=0)
        gradient.plot(curves["step"], median, color=colour)
        quality.plot(curves["judged at"], curves["frechet"], color=colour, marker="o", markersize=3.5)
    loss.set_title(f"D's loss, median of {INTERVAL} steps")
    gradient.set_title("norm of D's gradient, median to largest")
    quality.set_title("Fréchet distance of the samples")
    for axes in (gradient, quality):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in (loss, gradient, quality):
        axes.set_xlabel("steps")
    figure.suptitle("A vision transformer as discriminator, on the digits", x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lesson", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    config = PRESETS["vitgan-digits"]
    parser.add_argument("--steps", type=int, default=config.run.steps, help=f"of each run; default {config.run.steps}")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder to write to; default docs")
    options = parser.parse_args(arguments)
    images, labels = load_digits(config.img_size)
    classifier, _ = train_classifier(images, labels)
    record = start_record("python -m benchmarks.lesson", "cpu", "")
    about = {"date": record.date, "commit": record.commit, "machine": record.machine}
    runs = {name: train(arm, options.steps, classifier, images) for name, arm in arms(config).items()}
    results = about | {"samples": SAMPLES, "runs": runs}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    with matplotlib.rc_context(STYLE):
        (options.out / f"{NAME}.svg").write_bytes(draw(results))


if __name__ == "__main__":
    main()
