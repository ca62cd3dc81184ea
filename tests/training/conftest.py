import pytest
import torch

from lada_kernels.training.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig


@pytest.fixture
def tiny(tmp_path) -> Config:
    """A run of milliseconds per step: 32 pixels, all of LadaGAN's parts, every augmentation."""
    return Config(
        model=ModelConfig(
            img_size=32,
            dim=(16, 8, 8),
            noise_dim=8,
            heads=(2, 2, 2),
            mlp_dim=(8, 8, 8),
            enc_dim=(4, 8),
            out_dim=(8, 8),
            d_heads=2,
            d_mlp_dim=8,
        ),
        optim=OptimConfig(batch_size=4, r1=1e-2, r1_every=2, augment=("color", "translation", "cutout"), ema_decay=0.9),
        data=DataConfig(source="digits"),
        run=RunConfig(
            out=str(tmp_path / "run"),
            steps=4,
            log_every=2,
            grid_every=4,
            save_every=2,
            grid_images=4,
            device="cpu",
        ),
    )


@pytest.fixture
def images() -> torch.Tensor:
    """Ten images of noise: batches of four cross the seam between epochs."""
    return torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
