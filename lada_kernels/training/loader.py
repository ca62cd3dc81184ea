"""Batches of images, gathered and sent to the device while the batch before is trained on."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lada_kernels.training.data import Sampler
from lada_kernels.training.distributed import Part


class Loader:
    """Endless batches of pixels on a device; its state is the sampler's as of the last batch handed out.

    A thread gathers the next batch from the images, which memory holds whole or a file maps; on CUDA into pinned memory,
    from where it is copied without waiting.

    Args:
        images: [n, C, H, W], on the CPU.
        sampler: of indices of whole batches.
        parts: those of every batch that are to be loaded, one after the other; default the whole.
        device: where the batches go.
        memory_format: of the batches.

    Attributes:
        waited: seconds that were spent on waiting for a batch, in all.
    """

    def __init__(
        self,
        images: Tensor,
        sampler: Sampler,
        parts: Sequence[Part] = (Part(0, 1),),
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.images, self.sampler, self.parts = images, sampler, parts
        self.device, self.memory_format = torch.device(device), memory_format
        self.waited = 0.0
        # A thread begins on the first GPU, whichever this one is on.
        on_device = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=on_device)
        self._state = sampler.state_dict()
        self._coming: Future[tuple[Tensor, dict[str, int]]] | None = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Tensor:
        """[b, C, H, W], the parts of the sampler's next batch."""
        coming = self._coming or self._thread.submit(self._gather)
        start = time.perf_counter()
        pixels, self._state = coming.result()
        self.waited += time.perf_counter() - start
        self._coming = self._thread.submit(self._gather)
        return pixels.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)

    def _gather(self) -> tuple[Tensor, dict[str, int]]:
        whole = next(self.sampler)  # [B]
        indices = torch.cat([part.of(whole) for part in self.parts]).numpy()  # [b]
        pixels = torch.empty(
            len(indices), *self.images.shape[1:], dtype=self.images.dtype, pin_memory=self.device.type == "cuda"
        )
        # Torch's own gathering would start a second pool of threads. "clip" writes to `out` directly.
        np.take(self.images.numpy(), indices, axis=0, out=pixels.numpy(), mode="clip")
        return pixels, self.sampler.state_dict()

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to go on after the last batch that was handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken; what is on its way is dropped."""
        if self._coming is not None:
            self._coming.result()
            self._coming = None
        self.sampler.load_state_dict(state)
        self._state = state
