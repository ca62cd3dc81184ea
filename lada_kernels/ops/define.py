"""An op is declared once: its schemas, fake kernels, derivatives to second order and vmap rules follow.

Each order is an operator of torch's dispatcher: `lada_kernels::<op>`, `<op>_backward` and `<op>_double_backward`. The
derivative of each is the next, and that of the last raises, so that `torch.compile` and `torch.export` differentiate them as
they do torch's own.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from .. import backends
from ..backends.base import Results

_LIBRARY = torch.library.Library("lada_kernels", "DEF")

R = TypeVar("R")


class Operator:
    """An operator of torch's dispatcher, and its derivative.

    It takes `arguments` and the backend that was asked for. The dispatcher knows no None: a result that is absent, or whose
    flag in the first argument `needs` is False, is an empty tensor there.

    Args:
        name: its name there.
        arguments: as in a schema, such as "Tensor? mask".
        results: names of tensors.
        compute: the results, by the kernels of the backend that is chosen.
        primary: the argument whose device, dtype and channels decide the backend.
        fake: results of the same shapes and dtypes, without values.
        gradients: the arguments that have gradients.
        first: how many of the results have gradients; the others follow.
        saved: the arguments and results that the derivative is computed from.
        settings: the arguments that it needs beside those.
        wanted: which of the needed gradients to compute, where it is not all of them.
        derivative: of (needs, *gradients of results, *saved, *settings, backend), the gradients, in the order of `gradients`.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        results: Sequence[str],
        *,
        op: str,
        compute: Callable[..., Results],
        primary: str,
        fake: Callable[..., Results],
        gradients: Sequence[str],
        first: int,
        saved: Sequence[str],
        settings: Sequence[str],
        derivative: Callable[..., tuple[Tensor | None, ...]],
        wanted: Callable[[list[bool]], list[bool]] = list,
    ) -> None:
        names = [argument.split()[1] for argument in arguments] + ["backend"]
        known = [*names, *results]
        needs_come_first = names[0] == "needs"
        like, where = names.index(primary), [names.index(x) for x in gradients]
        tensors = [(i, names[i]) for i, argument in enumerate(arguments) if argument.startswith("Tensor")]
        to_save = _picking([known.index(tensor) for tensor in saved])
        to_set = _picking([names.index(setting) for setting in (*settings, "backend")])

        def present(computed: Results, args: tuple[Any, ...]) -> Any:
            if isinstance(computed, Tensor):
                return computed
            if needs_come_first:
                asked = [*args[0], *[True] * (len(computed) - len(args[0]))]
                computed = tuple([x if needed else None for x, needed in zip(computed, asked, strict=True)])
            return tuple([args[like].new_empty(0) if x is None else x for x in computed])

        def run(*args: Any) -> Any:
            for i, argument in tensors:
                if args[i] is not None:
                    check_storage(argument, args[i])
            return present(compute(backends.kernels(op, args[like], args[-1]), *args[:-1]), args)

        def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = (output,) if isinstance(output, Tensor) else output
            ctx.save_for_backward(*to_save((*inputs, *outputs)))
            ctx.settings = to_set(inputs)
            constant = outputs[first:]
            if needs_come_first and not all(inputs[0]):
                constant += tuple([x for x, needed in zip(outputs, inputs[0], strict=False) if not needed])
            if constant:
                ctx.mark_non_differentiable(*constant)
            ctx.set_materialize_grads(False)

        def differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            all_gradients: list[Tensor | None] = [None] * len(names)
            if any(grad is not None for grad in grads):
                needs = wanted([ctx.needs_input_grad[i] for i in where])
                computed = derivative(needs, *grads[:first], *ctx.saved_tensors, *ctx.settings)
                for i, needed, grad in zip(where, needs, computed, strict=False):
                    all_gradients[i] = grad if needed else None
            return tuple(all_gradients)

        returned = "Tensor" if len(results) == 1 else f"({', '.join(['Tensor'] * len(results))})"
        _LIBRARY.define(f"{name}({', '.join([*arguments, 'str backend'])}) -> {returned}")
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        overload, qualified = getattr(torch.ops.lada_kernels, name).default, f"lada_kernels::{name}"
        torch.library.register_fake(qualified, lambda *args: present(fake(*args[:-1]), args), lib=_LIBRARY)
        torch.library.register_autograd(qualified, differentiate, setup_context=keep, lib=_LIBRARY)
        torch.library.register_vmap(qualified, _one_by_one(overload), lib=_LIBRARY)

        class Eager(Function):
            """The same, cheaper than what `register_autograd` makes."""

            @staticmethod
            def forward(ctx: Any, *args: Any) -> Any:
                output = overload(*args)
                keep(ctx, args, output)
                return output

            backward = staticmethod(differentiate)

        class Transformed(Function):
            """The same where torch.func may transform it."""

            @staticmethod
            def forward(*args: Any) -> Any:
                return overload(*args)

            setup_context = staticmethod(keep)
            backward = staticmethod(differentiate)
            generate_vmap_rule = True

        self._overload: Callable[..., Any] = overload
        self._eager: Callable[..., Any] = Eager.apply
        self._transformed: Callable[..., Any] = Transformed.apply

    def __call__(self, *args: Any) -> Any:
        """The results."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self._overload(*args)
        try:
            return self._eager(*args)
        except RuntimeError as error:  # before anything was computed, where torch.func is at work
            if "setup_context" not in str(error):
                raise
            return self._transformed(*args)


def _picking(positions: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Takes the values at these positions."""
    if len(positions) < 2:
        return lambda values: tuple([values[i] for i in positions])
    return itemgetter(*positions)


def _dense(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


class Op(Generic[R]):
    """An op in three orders; R is what a call returns, a tensor or a tuple of them.

    What they take and return, and every backend's kernels with them, is by what is declared::

        forward(*inputs, *settings, *options) -> results
        backward(needs, grad, *saved, *settings) -> *gradients, *inner
        double_backward(needs, *cotangents, grad, *saved, *read, *settings) -> gradients of grad and of the saved inputs

    `grad` is the first result's. `needs` says which gradients are asked for; a kernel may return None for the others. A
    cotangent is None where it is zero. What the op returns are total derivatives: nothing flows back through saved results.

    Args:
        name: the op's.
        shapes: the forward's results without values, None where one is absent.
        inputs: tensors; those whose names end in "?" may be None.
        gradients: the inputs that have gradients.
        results: tensors, of which the first has a gradient.
        saved: the inputs and results that gradients are computed from.
        primary: the input whose device, dtype and channels decide the backend.
        settings: such as "float scale".
        options: settings of the forward alone.
        inner: what the backward computes beside the gradients for the double backward to read.
        reads_gradients: whether that reads the gradients too, behind `inner`.
        like: the saved tensor that a gradient or an inner tensor is shaped like, where it is not the one of its name.
        empty: a gradient without values, of the tensor that it is shaped like; dense by default.
        wanted: which of the needed gradients to compute, where it is not all of them.
        gradient: in place of kernels for the other orders: the backward in differentiable operations, its last argument the
            backend that was asked for.
    """

    def __init__(
        self,
        name: str,
        shapes: Callable[..., Results],
        *,
        inputs: Sequence[str],
        gradients: Sequence[str],
        results: Sequence[str],
        saved: Sequence[str],
        primary: str,
        settings: Sequence[str] = (),
        options: Sequence[str] = (),
        inner: Sequence[str] = (),
        like: dict[str, str] | None = None,
        reads_gradients: bool = False,
        empty: Callable[[Tensor], Tensor] = _dense,
        wanted: Callable[[list[bool]], list[bool]] = list,
        gradient: Callable[..., tuple[Tensor | None, ...]] | None = None,
    ) -> None:
        optional = {tensor.removesuffix("?") for tensor in inputs if tensor.endswith("?")}
        inputs, like = [tensor.removesuffix("?") for tensor in inputs], like or {}

        def typed(tensors: Sequence[str]) -> list[str]:
            return [f"Tensor? {tensor}" if tensor in optional else f"Tensor {tensor}" for tensor in tensors]

        def shaped_like(arguments: Sequence[str], results: Sequence[str]) -> Callable[..., Results]:
            names = [argument.split()[1] for argument in arguments]
            positions = [names.index(like.get(tensor, tensor)) for tensor in results]
            return lambda *args: tuple([None if args[i] is None else empty(args[i]) for i in positions])

        cotangents = [f"Tensor? cot_{tensor}" for tensor in gradients]
        returned = [f"grad_{tensor}" for tensor in gradients]
        read = [*inner, *(returned if reads_gradients else [])]
        second = ["grad", *(tensor for tensor in gradients if tensor in saved)]
        shared: dict[str, Any] = {"op": name, "primary": primary, "settings": [setting.split()[1] for setting in settings]}
        if gradient is None:
            arguments = ["bool[] needs", *cotangents, "Tensor grad", *typed(saved), *typed(read), *settings]
            double_backward = Operator(
                f"{name}_double_backward",
                arguments,
                second,
                compute=lambda kernels, *args: kernels.double_backward(*args),
                fake=shaped_like(arguments, second),
                gradients=[argument.split()[1] for argument in arguments if argument.startswith("Tensor")],
                first=len(second),
                saved=(),
                derivative=_third(name),
                **shared,
            )
            arguments = ["bool[] needs", "Tensor grad", *typed(saved), *settings]
            gradient = Operator(
                f"{name}_backward",
                arguments,
                [*returned, *inner],
                compute=lambda kernels, *args: kernels.backward(*args),
                fake=shaped_like(arguments, [*gradients, *inner]),
                gradients=second,
                first=len(gradients),
                saved=("grad", *saved, *read),
                derivative=double_backward,
                **shared,
            )
        self.backward: Callable[..., Any] = gradient
        self.forward = Operator(
            name,
            [*typed(inputs), *settings, *options],
            results,
            compute=lambda kernels, *args: kernels.forward(*args),
            fake=shapes,
            gradients=gradients,
            first=1,
            saved=saved,
            derivative=gradient,
            wanted=wanted,
            **shared,
        )

    def __call__(self, *args: Any) -> R:
        """The forward's results, on the backend that is asked for here."""
        results: R = self.forward(*args, backends.requested())
        return results


def _third(op: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise NotImplementedError(f"{op} is differentiable twice; a third derivative was asked for")

    return refuse


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule of an operator: it is called for each element of the mapped dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def element(i: int) -> list[Any]:
            pairs = zip(args, in_dims, strict=True)
            return [x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x for x, dim in pairs]

        results = [operator(*element(i)) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    return rule


def check_storage(name: str, x: Tensor) -> None:
    """The memory is there: a kernel is handed an address, and torch lets storages be freed, as FSDP does."""
    try:
        storage = x.untyped_storage()
    except NotImplementedError:  # a wrapper of torch.func's: what it wraps is checked where it is computed with
        return
    count = x.numel()
    if count and not x.is_contiguous():
        count = 1 + sum([(size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)])
    needed = (x.storage_offset() + count) * x.element_size()
    if count and storage.nbytes() < needed:
        raise RuntimeError(
            f"{name}: got a storage of {storage.nbytes()} bytes, expected {needed} for shape {list(x.shape)}; "
            "it has been freed or resized"
        )
