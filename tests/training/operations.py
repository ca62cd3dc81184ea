"""Recording on the CPU, as CUDA graphs do it: what Python decided, and which memory was read, is settled once and for all."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# With these the CPU reads values: on a device it would wait for them.
WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique2", "repeat_interleave"}


class Operations:
    """A `recording.Recorder` of the operations that reach the dispatcher."""

    def warm_up(self) -> AbstractContextManager:
        return nullcontext()

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        rng = torch.get_rng_state()
        with _Recording() as recording:
            found = compute()
        recording.undo()
        torch.set_rng_state(rng)
        place = recording.places[_place(found)]
        result = torch.empty_like(found)

        def replay() -> None:
            result.copy_(recording.replay()[place])

        return replay, result


def _place(tensor: Tensor) -> tuple:
    """What memory a tensor looks at, and how: equal for all tensors that are the same to an operation."""
    storage = tensor.untyped_storage().data_ptr()
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.places: dict[tuple, int] = {}  # of what operations gave
        self.operations: list[tuple[Any, Any, list[int | None]]] = []
        self.kept: list[Any] = []  # so that memory is not given to another tensor
        self.fresh: set[int] = set()
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            raise RuntimeError(f"{func} waits for the device: it cannot be recorded")
        inputs = (args, kwargs or {})
        self._keep_what_is_overwritten(func, args)
        taken = tree_map_only(Tensor, self._reference, inputs)
        result = func(*args, **(kwargs or {}))
        read = {leaf.untyped_storage().data_ptr() for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)}
        outputs = []
        for leaf in tree_flatten(result)[0]:
            outputs.append(None)
            if isinstance(leaf, Tensor):
                if leaf.untyped_storage().data_ptr() not in read:
                    self.fresh.add(leaf.untyped_storage().data_ptr())
                outputs[-1] = self.places.setdefault(_place(leaf), len(self.places))
        self.kept.append((inputs, result))
        self.operations.append((func, taken, outputs))
        return result

    def _reference(self, tensor: Tensor) -> "Tensor | _Given":
        place = self.places.get(_place(tensor))
        if place is not None:
            return _Given(place)
        assert tensor.untyped_storage().data_ptr() not in self.fresh or not tensor.numel(), "an operation was missed"
        return tensor.detach()

    def _keep_what_is_overwritten(self, func: Any, args: tuple) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            # Batch norm's schema does not own up to these.
            written = argument.name.startswith("running_") or (argument.alias_info and argument.alias_info.is_write)
            if written and value is not None:
                for tensor in tree_flatten(value)[0]:
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.fresh:
                        self.before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        """Bring back what was there before."""
        for storage, before in self.before.values():
            storage.copy_(before)

    @torch.no_grad()
    def replay(self) -> dict[int, Tensor]:
        """What the operations give now, by place."""
        given: dict[int, Tensor] = {}
        for func, taken, outputs in self.operations:
            args, kwargs = tree_map_only(_Given, lambda reference: given[reference.place], taken)
            result = func(*args, **kwargs)
            for place, leaf in zip(outputs, tree_flatten(result)[0], strict=True):
                if place is not None:
                    given[place] = leaf
        return given


class _Given:
    """Stands for what an earlier operation gave."""

    def __init__(self, place: int) -> None:
        self.place = place
