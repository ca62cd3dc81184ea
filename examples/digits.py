"""Train a small LadaGAN on handwritten digits, draw from it, see where it looks, and judge it.

    pip install '.[train]' matplotlib
    python examples/digits.py               # 1,200 steps: some minutes on two CPU cores
    python examples/digits.py --steps 50    # less than one, to see that it runs

Nothing is downloaded: scikit-learn carries the digits. In runs/example it leaves

    digits.png               losses, samples, and the attention of two of them by stage and head
    generator.safetensors    the averaged generator, with the configuration that builds it
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib import pyplot
from torch import Tensor, nn
from tqdm import trange

from lada_kernels.training.data import load_digits
from lada_kernels.training.evaluation import make_evaluator
from lada_kernels.training.families import LadaGANGenerator
from lada_kernels.training.grid import image_grid
from lada_kernels.training.presets import PRESETS
from lada_kernels.training.progress import METRICS
from lada_kernels.training.sampling import attention_maps, attention_sheet, draw, latents_of, load_generator
from lada_kernels.training.trainer import Trainer
from lada_kernels.training.weights import save_generator

SEED = 1  # of the samples that are shown


def plot(history: Tensor, generator: nn.Module, path: Path) -> None:
    """Losses, samples and attention maps in one picture, from what every step reported, [steps, 10] in the order of METRICS."""
    figure = pyplot.figure(figsize=(12, 7.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    axes = figure.subplot_mosaic([["losses", "samples"], ["attention", "attention"]], height_ratios=[5, 3], width_ratios=[7, 5])

    window = min(25, (len(history) + 3) // 4)
    means = history.unfold(0, window, 1).mean(-1)  # [steps - window + 1, 10]
    for name, label in (("d_loss", "discriminator"), ("g_loss", "generator")):
        axes["losses"].plot(range(window, len(history) + 1), means[:, METRICS.index(name)], label=label)
    axes["losses"].set(title=f"losses, mean of {window} steps", xlabel="step", ylim=(0, None))
    axes["losses"].legend(frameon=False)
    axes["losses"].spines[["top", "right"]].set_visible(False)

    axes["samples"].imshow(image_grid(draw(generator, 64, seed=SEED)))
    axes["samples"].set_title("samples of the averaged generator")

    latents = next(latents_of(generator, 64, seed=SEED))  # [64, noise_dim], those of the samples
    images, maps = attention_maps(generator, latents[:2])  # maps: for each stage [2, heads, side, side]
    axes["attention"].imshow(attention_sheet(images, maps), interpolation="lanczos")
    axes["attention"].set_title(
        "the first two, and where each stage and head looks: orange more, blue less than an equal share"
    )
    for name in ("samples", "attention"):
        axes[name].axis("off")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, save, plot, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--samples", type=int, default=2000, help="to be judged")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    args = parser.parse_args()

    preset = PRESETS["digits"]
    config = replace(
        preset,
        generator=LadaGANGenerator(dim=(128, 32, 16), heads=(4, 4, 4), noise_dim=64, mlp_dim=(128, 64, 32)),
        optim=replace(preset.optim, loss="nonsaturating", r1=1e-3, r1_every=4),
    )
    images, _ = load_digits(config.img_size)  # [1797, 3, 32, 32] uint8; for your own there is load_images
    trainer = Trainer(config, images)
    evaluator = make_evaluator(config, images, args.out, samples=args.samples)
    untrained = evaluator.evaluate(trainer.ema)["frechet"]

    # A step trains D, with R1 through the fused double backward, then G, then G's average.
    history = torch.stack([trainer.step() for _ in trange(args.steps, desc="training", unit="step")]).cpu()  # [steps, 10]

    weights = args.out / "generator.safetensors"
    save_generator(trainer.ema.state_dict(), config, weights)
    generator = load_generator(weights)  # anywhere, from now on
    plot(history, generator, args.out / "digits.png")
    trained = evaluator.evaluate(generator)

    print(f"Fréchet distance to the real digits, in a digit classifier's features (not FID), of {args.samples:,} samples:")
    print(f"  untrained {untrained:.1f}, after {args.steps:,} steps {trained['frechet']:.1f}")
    print(f"  precision {trained['precision']:.3f}, recall {trained['recall']:.3f}")
    print(f"pictures: {args.out / 'digits.png'}")
    print(f"weights:  {weights}")


if __name__ == "__main__":
    main()
