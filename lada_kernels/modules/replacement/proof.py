"""Whether a module computes LadaGAN's attention: by numbers, to the second order, on copies."""

import copy
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lada_kernels.backends import use_backend
from lada_kernels.modules.replacement.adopted import Layout, adopt
from lada_kernels.modules.replacement.candidates import UnsuitableError

_BATCH, _TOKENS = 2, 5
# Equal functions agree to roundoff in float64 (1e-16, magnified by sums and derivatives), or in float32 (6e-8) where a module
# keeps a constant in that.
_TOLERANCE = 1e-7


def prove(module: nn.Module, layout: Layout) -> Layout:
    """Compare a copy of ``module`` with what `adopt` would put in its place; neither it nor any random state changes.

    Weights and tokens are random: a layer that starts at zero would hide what comes before it.

    Returns:
        The layout, with what the module returns.

    Raises:
        UnsuitableError: they differ, or could not be compared.
    """
    with use_backend("reference"), torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        try:
            original = _bare_copy(module)
            twin = copy.deepcopy(original)
            result = original.eval().forward(*[_tokens(original, 0)] * len(layout.inputs))
            layout = replace(layout, returns_weights=_returns_weights(result))
            ours = adopt(twin, layout)
            for training in (False, True):
                _compare(original.train(training), ours.train(training), layout)
        except UnsuitableError:
            raise
        except Exception as error:  # whatever a stranger's code raises
            first_line = (str(error).splitlines() or [""])[0]
            raise UnsuitableError(f"it could not be checked, {type(error).__name__}: {first_line}") from error
    return layout


def _bare_copy(module: nn.Module) -> nn.Module:
    """A deep copy without hooks, in float64 on the CPU, with random weights."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise UnsuitableError("its parameters are on the meta device, where nothing can be computed: load them first")
    bare = type(module).__new__(type(module))
    memo: dict[int, Any] = {}
    nn.Module.__init__(bare)
    kept_by_torch = set(vars(bare))
    vars(bare).update({name: copy.deepcopy(v, memo) for name, v in vars(module).items() if name not in kept_by_torch})
    for name, child in module.named_children():
        bare.register_module(name, copy.deepcopy(child, memo))
    bare.to("cpu", torch.float64).requires_grad_(True)
    with torch.no_grad():
        for seed, parameter in enumerate(bare.parameters()):
            std = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(_noise(parameter.shape, seed) * std)
    return bare


def _noise(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")


def _tokens(module: nn.Module, seed: int) -> Tensor:
    dim = next(child.in_features for child in module.children() if isinstance(child, nn.Linear))
    return _noise((_BATCH, _TOKENS, dim), 1000 + seed).requires_grad_()


def _returns_weights(result: object) -> bool:
    if isinstance(result, Tensor):
        return False
    if type(result) is tuple and len(result) == 2 and all(isinstance(part, Tensor) for part in result):
        return True
    raise UnsuitableError(f"its forward returns a {type(result).__name__}, expected a tensor or a pair of tensors")


def _compare(original: nn.Module, ours: nn.Module, layout: Layout) -> None:
    mode = "training mode, unlike in evaluation," if original.training else "evaluation mode"
    arguments = len(layout.inputs)
    # Called with the same tokens in all places, as self-attention is, ours may take another way.
    for which in {(0,) * arguments, tuple(range(arguments))}:
        before = dict(vars(original))
        theirs = _orders(original, which)
        changed = [name for name, value in vars(original).items() if name not in before or before[name] is not value]
        if changed:
            raise UnsuitableError(f"its forward keeps {', '.join(changed)}, which ours would not")
        values = _orders(ours, which)
        # The score's bias has no gradient but rounding, of the size that the other gradients have.
        scales: dict[str, float] = defaultdict(float)
        for label, truth in theirs.items():
            scales[_order(label)] = max(scales[_order(label)], truth.norm().item())
        for label, truth in theirs.items():
            value, scale = values[label], scales[_order(label)]
            if value.shape != truth.shape:
                raise UnsuitableError(f"its {label} has shape {list(truth.shape)}, LadaGAN's attention {list(value.shape)}")
            error = (value - truth).norm().item()
            if not error <= _TOLERANCE * scale:
                raise UnsuitableError(
                    f"another function than LadaGAN's: in {mode} its {label} is off by {error / (scale or error):.1g}"
                )


def _order(label: str) -> str:
    return label.split(" of ")[0]


def _orders(module: nn.Module, which: tuple[int, ...]) -> dict[str, Tensor]:
    """The results for these tokens, their gradients, those of R1's kind of penalty, and the buffers afterwards."""
    tokens = {f"argument {n}": _tokens(module, n) for n in sorted(set(which))}
    results = module.forward(*(tokens[f"argument {n}"] for n in which))
    results = results if isinstance(results, tuple) else (results,)
    sources = tokens | dict(module.named_parameters())

    def gradients(value: Tensor, **options: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(value, list(sources.values()), allow_unused=True, materialize_grads=True, **options)

    first = gradients(sum((result * _noise(result.shape, 2000)).sum() for result in results), create_graph=True)
    second = gradients(sum(g.square().sum() for g in first[: len(tokens)]))
    values = dict(zip(("result", "attention map"), results, strict=False))
    values |= {f"gradient of {name}": g for name, g in zip(sources, first, strict=True)}
    values |= {f"second gradient of {name}": g for name, g in zip(sources, second, strict=True)}
    return {name: value.detach() for name, value in values.items()} | dict(module.named_buffers())
