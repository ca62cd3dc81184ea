"""Training as several processes, which torchrun starts: who this one is, and what they do together.

Every process holds the same weights and the same state of the random numbers, and takes its part of every batch.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from lada_kernels.training.errors import TrainingError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # until a process that hangs is given up
PATIENCE = timedelta(days=1)  # for what may take long, such as decoding a large folder, or an evaluation


@dataclass(frozen=True)
class Processes:
    """The processes that train one run, seen from one of them; by default there is no other.

    Attributes:
        rank: number of this process.
        count: how many there are.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process does what is done once: files, reports."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds in any process; waits for all, but not for a device."""
        if self.count == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, in each of them."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.count

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one's after the other's, in each of them; their numbers may differ."""
        if self.count == 1:
            return rows
        length = torch.tensor([len(rows)], device=rows.device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length)
        padded = rows.new_zeros(int(max(lengths)), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.zeros_like(padded) for _ in range(self.count)]
        dist.all_gather(gathered, padded)
        return torch.cat([part[: int(length)] for part, length in zip(gathered, lengths, strict=True)])

    def once(self, action: Callable[[], T], patient: bool = False) -> T | None:
        """Let the first process do something; where it fails, all raise: it the error, the others ``TrainingError``.

        They wait for it ten minutes, or as long as it may take. Returns what it returned there, None in the others.
        """
        if self.count == 1:
            return action()
        error = result = None
        try:
            if self.leads:
                result = action()
        except (OSError, TrainingError) as caught:
            error = caught
        reason = self._from_first(None if error is None else str(error), self._patient if patient else None)
        if error is not None:
            raise error
        if reason is not None:
            raise TrainingError(f"process 0 failed: {reason}")
        return result

    def check_equal(self, name: str, value: object) -> None:
        """``TrainingError`` in every process unless all have the same ``value``."""
        if self.count > 1 and self.any(value != (first := self._from_first(value))):
            raise TrainingError(f"{name}: expected the same in all processes, got {first} in 0 and {value} in {self.rank}")

    def from_machine(self, load: Callable[[], Tensor], reload: Callable[[int], Tensor]) -> Tensor:
        """What one process of every machine loads, in any time, and the others load again from there.

        Args:
            load: called by the first process of a machine.
            reload: called by its others afterwards, with the result's length.
        """
        images = load() if self.local_rank == 0 else None
        if self.count == 1:
            return images
        length = torch.tensor([0 if images is None else len(images)])
        dist.all_reduce(length, dist.ReduceOp.MAX, self._patient)
        return reload(int(length)) if images is None else images

    @cached_property
    def _patient(self) -> "dist.ProcessGroup":
        """The same processes, for what may take long; all have to ask for it at once."""
        return dist.new_group(backend="gloo", timeout=PATIENCE)

    def _from_first(self, value: Any, group: "dist.ProcessGroup | None" = None) -> Any:
        box = [value]
        dist.broadcast_object_list(box, group=group)
        return box[0]

    def replicate(self, model: nn.Module) -> "Replica | DistributedDataParallel":
        """What runs a computation with ``model``, ``replica(compute, *args)``, so that its backward averages gradients.

        torch's DistributedDataParallel expects one forward before a backward. A loss in which the model is called several
        times, and differentiated by its input, is therefore computed inside of one.
        """
        replica = Replica(model)
        if self.count == 1:
            return replica
        # Of kernels with one channel, whose strides are not unique.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(replica)


ALONE = Processes()


class Replica(nn.Module):
    """A model's parameters, and whatever is computed with them as forward.

    Its buffers are left out: they follow from the parameters and from the images, and would be sent with every forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        """``compute(*args)``."""
        return compute(*args)

    def no_sync(self) -> AbstractContextManager:
        """As of DistributedDataParallel; there is nothing to leave out."""
        return nullcontext()


@dataclass(frozen=True)
class Part:
    """One of the equal parts that a batch is run in, by another process or later.

    Attributes:
        index: its number in the batch's order.
        count: how many there are.
    """

    index: int
    count: int

    def of(self, whole: Tensor) -> Tensor:
        """Its items of the whole batch's, which their number must divide."""
        return whole.tensor_split(self.count)[self.index]

    def draws(self) -> AbstractContextManager:
        """Inside, random numbers for the part's items are what a run of the whole batch would draw for them."""
        return nullcontext() if self.count == 1 else _WholeDraws(self)


class _WholeDraws(TorchFunctionMode):
    """Draws for all parts wherever a tensor is drawn, one row an item, and returns the part's rows.

    So all parts leave the generator in one state, that of the whole batch. Generators draw noise deep inside, where the
    parts are not known.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        count = self.part.count
        if func in (torch.rand, torch.randn):
            rows, *rest = args
            args = (rows * count, *rest)
        elif func is torch.randint:
            low, high, (rows, *rest) = args
            args = (low, high, (rows * count, *rest))
        elif func is torch.randn_like:
            (like,) = args
            args = (like.new_empty(len(like) * count, *like.shape[1:]),)
        else:
            return func(*args, **(kwargs or {}))
        return self.part.of(func(*args, **(kwargs or {})))


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, and part from them at the end; without torchrun there is one.

    On CUDA every process takes the GPU of its number on the machine.

    Raises:
        TrainingError: there are more processes than GPUs, or torchrun's environment is incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield ALONE
        return
    rank, count, local_rank = (_from_environment(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if not dist.is_available():
        raise TrainingError(f"WORLD_SIZE: expected 1 as this torch is built without torch.distributed, got {count}")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"LOCAL_RANK: expected less than {torch.cuda.device_count()}, one process for each GPU, got {local_rank}"
            )
        torch.cuda.set_device(local_rank)
        # What is on the CPU goes by gloo: agreeing on a stop waits for no kernel, and a process that died is noticed.
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=torch.device("cuda", local_rank))
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Processes(rank, count, local_rank)
    finally:
        dist.destroy_process_group()


def _from_environment(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError) as error:
        raise TrainingError(f"{name}: expected a number, as torchrun sets it, got {os.environ.get(name)!r}") from error
