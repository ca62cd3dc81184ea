import os

import torch
from cuda_emulation import build as cuda_emulation

# Read when a kernel is decorated, so before anything imports one: without a GPU, Triton's kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without a GPU, CUDA's kernels are emulated, and compiled for that by the first test that runs one.
if not torch.cuda.is_available() and cuda_emulation.unavailable() is None:
    cuda_emulation.stand_in()
