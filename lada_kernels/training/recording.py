"""A training step recorded once, as a CUDA graph, and replayed: one launch in the place of thousands."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Recorder(Protocol):
    """What a kind of device records with."""

    def warm_up(self) -> AbstractContextManager:
        """Inside, computations prepare for being recorded: libraries start, kernels compile, optimisers make their state."""

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What computes it anew, and where the result then stands; nothing is computed now."""


class CudaGraphs:
    """Records CUDA graphs that share their memory, as only one runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """A stream of its own, as recording has."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            yield
        current.wait_stream(aside)

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `Recorder`. What waits for the device, or copies from it, cannot be recorded: torch raises."""
        graph = torch.cuda.CUDAGraph()
        # The loader's thread may allocate meanwhile.
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            result = compute()
        return graph.replay, result


RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphs}


class Recorded:
    """Calls a function as it stands a few times, then records it and replays the record.

    Every call counts, those that warm up too. What the function reads beside its arguments has to stand in tensors that stay
    where they are; what Python alone decides belongs into the variant.

    Args:
        function: of a variant and tensors, to a tensor.
        recorder: of the device.
        warm_ups: calls of each variant before it is recorded.
    """

    def __init__(self, function: Callable[..., Tensor], recorder: Recorder, warm_ups: int = 3) -> None:
        self.function, self.recorder, self.warm_ups = function, recorder, warm_ups
        self._calls: dict[Hashable, int] = {}
        self._records: dict[Hashable, tuple[Callable[[], None], Tensor]] = {}
        self._arguments: tuple[Tensor, ...] = ()

    def __call__(self, variant: Hashable, *arguments: Tensor) -> Tensor:
        """``function(variant, *arguments)``; shapes, dtypes and layouts are those of the first call."""
        self._calls[variant] = self._calls.get(variant, 0) + 1
        if self._calls[variant] <= self.warm_ups:
            with self.recorder.warm_up():
                return self.function(variant, *arguments)
        if not self._arguments:
            self._arguments = tuple(argument.clone() for argument in arguments)
        if variant not in self._records:
            self._records[variant] = self.recorder.record(lambda: self.function(variant, *self._arguments))
        for standing, argument in zip(self._arguments, arguments, strict=True):
            standing.copy_(argument, non_blocking=True)
        replay, result = self._records[variant]
        replay()
        return result.clone()  # the next replay writes there
