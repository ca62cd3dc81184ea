import os

import torch

# Read when a kernel is decorated, so before anything imports one: without a GPU, Triton's kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
