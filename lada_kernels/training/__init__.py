"""Training of GANs: losses, augmentation, data, EMA, checkpoints, the loop, metrics."""
