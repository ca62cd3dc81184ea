"""Checkpoints of LadaGAN's official TensorFlow code: which of its variables is which of our tensors.

Keras keeps a dense kernel as [in, out] and a convolution's as [h, w, in, out]; queries, keys and values have a layer each, here
one. A shuffle by r that leaves C channels takes pixel (i, j) of channel c from channel (i r + j) C + c there, c r^2 + i r + j
here: the layer before it, the last of an MLP without residual, has its rows permuted instead, and the convolution behind D's
inverse shuffle its input channels.
"""

import re
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lada_kernels.training.config import Config
from lada_kernels.training.errors import TrainingError
from lada_kernels.training.official import BLOCKS, Weights, expected_shapes, infer_config
from lada_kernels.training.tensor_bundle import TensorBundle
from lada_kernels.training.weights import Shapes, compare

# Our name, the variables that make it, side by side, and which axes of theirs ours are.
Rule = tuple[str, tuple[str, ...], tuple[int, ...]]
_DENSE, _CONVOLUTION, _AS_IT_IS = (1, 0), (3, 2, 0, 1), (0,)
_EMBEDDING = (0, 1)

_ROOTS = {"generator": "generator", "discriminator": "discriminator", "ema": "ema_generator"}
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# What else a checkpoint holds: the optimisers and their moments, counts and scores, and the graph of its objects.
_OTHERS = re.compile(
    r"(g_optimizer|d_optimizer|n_images|fid|best_fid|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH)(/.*)?"
    r"|.*/\.OPTIMIZER_SLOT/.*|.*/\.ATTRIBUTES/OBJECT_CONFIG_JSON"
)
_STEPS = ("g_optimizer/iter", "g_optimizer/_iterations")  # Keras' optimisers before and since 2.11


def find_checkpoint(folder: Path) -> Path:
    """The prefix of the latest checkpoint, by the file ``checkpoint`` that TensorFlow keeps in the folder."""
    state = folder / "checkpoint"
    if not state.is_file():
        raise TrainingError(f"no TensorFlow checkpoint in {folder}: it has no file named checkpoint")
    latest = re.search(r'^model_checkpoint_path: "(.+)"$', state.read_text(), re.MULTILINE)
    if not latest:
        raise TrainingError(f"{state} names no model_checkpoint_path")
    return folder / Path(latest[1]).name  # an absolute path is one of the machine that wrote it


def read_tensorflow(prefix: Path) -> Weights:
    """Read a training checkpoint of the official TensorFlow code.

    Args:
        prefix: path of its files without ``.index`` and ``.data-00000-of-00001``.

    Raises:
        TrainingError: a file is missing or damaged, or a variable is missing, unknown or misshapen; the message names it.
    """
    bundle = TensorBundle(prefix)
    found: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in _ROOTS}
    roots = {root: name for name, root in _ROOTS.items()}
    strangers = []
    for name, entry in bundle.entries.items():
        if _OTHERS.fullmatch(name):
            continue
        root = roots.get(name.partition("/")[0])
        if root is None or not name.endswith(_VALUE):
            strangers.append(name)
        else:
            found[root][name] = entry.shape
    if strangers:
        raise TrainingError(f"{prefix} does not fit: unknown: {', '.join(strangers)}")

    rules = {name: _rules(name, found[name]) for name in _ROOTS}
    shapes = {name: _as_ours(rules[name], found[name], prefix) for name in _ROOTS}
    config = infer_config(shapes["ema"], shapes["discriminator"], "tf")
    states = {}
    for name in _ROOTS:
        expected = expected_shapes(config, name)
        compare(found[name], _as_theirs(rules[name], expected), f"{name} in {prefix}")
        states[name] = _in_our_order(name, _load(bundle, rules[name], expected), config)
    return Weights(config, _steps(bundle), states)


def _steps(bundle: TensorBundle) -> int:
    names = [name + _VALUE for name in _STEPS if name + _VALUE in bundle]
    if not names:
        raise TrainingError(f"{bundle.prefix} does not fit: missing: {_STEPS[0] + _VALUE}")
    return int(bundle[names[0]])


def _as_ours(rules: list[Rule], found: Shapes, prefix: Path) -> Shapes:
    """Shapes of our tensors, where one variable makes one; raises unless all variables are there and have the right rank."""
    known = {variable: axes for _, variables, axes in rules for variable in variables}
    compare(dict.fromkeys(found, ()), dict.fromkeys(known, ()), str(prefix))
    for variable, axes in known.items():
        if len(found[variable]) != len(axes):
            raise TrainingError(f"{variable} in {prefix}: expected {len(axes)} dimensions, got shape {list(found[variable])}")
    single = {name: (variables[0], axes) for name, variables, axes in rules if len(variables) == 1}
    return {name: tuple(found[variable][axis] for axis in axes) for name, (variable, axes) in single.items()}


def _as_theirs(rules: list[Rule], expected: Shapes) -> Shapes:
    """Shapes that the variables must have to make tensors of the expected ones."""
    shapes = {}
    for name, variables, axes in rules:
        for variable in variables:
            rows, *others = expected[name][-len(axes) :]  # an embedding has a batch dimension here
            ours = (rows // len(variables), *others)
            shapes[variable] = tuple(ours[axes.index(axis)] for axis in range(len(axes)))
    return shapes


def _load(bundle: TensorBundle, rules: list[Rule], expected: Shapes) -> dict[str, Tensor]:
    state = {}
    for name, variables, axes in rules:
        if not variables:  # BatchNorm's count of steps, which Keras does not keep
            state[name] = torch.zeros((), dtype=torch.int64)
            continue
        arrays = [bundle[variable] for variable in variables]
        for variable, array in zip(variables, arrays, strict=True):
            if array.dtype != np.float32:
                raise TrainingError(f"{variable} in {bundle.prefix}: expected float32, got {array.dtype}")
        state[name] = torch.from_numpy(np.concatenate([array.transpose(axes) for array in arrays]).reshape(expected[name]))
    return {name: state[name] for name in expected}


def _in_our_order(name: str, state: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Channels in the order of our pixel shuffles."""

    def reorder(key: str, axis: int, factor: int) -> None:
        split = state[key].unflatten(axis, (factor**2, -1))
        state[key] = split.transpose(axis, axis + 1).flatten(axis, axis + 1).contiguous()

    if name == "discriminator":
        reorder("conv_256.weight", 1, 2)
        return state
    patch = 1 if config.generator.decoder_dim else config.img_size // 32
    for tokens, factor in zip(BLOCKS, (2, 2, patch), strict=True):
        for key in ("weight", "bias"):
            reorder(f"block_{tokens}.mlp.2.{key}", 0, factor)
    return state


def _rules(name: str, found: Shapes) -> list[Rule]:
    """The rules of one model; how deep its encoder or decoder is, the variables found tell."""
    root = _ROOTS[name]
    if name == "discriminator":
        rules = _discriminator(_depth(found, root + "/encoder/{}/main/layer_with_weights-0/kernel"))
    else:
        rules = _generator(_depth(found, root + "/dec/layer_with_weights-{}/kernel", 2))
    return [(ours, tuple(f"{root}/{path}{_VALUE}" for path in paths), axes) for ours, paths, axes in rules]


def _depth(found: Shapes, name: str, step: int = 1) -> int:
    return sum(1 for _ in takewhile(lambda i: name.format(step * i) + _VALUE in found, count()))


def _generator(stages: int) -> Iterator[Rule]:
    for tokens, side in zip(BLOCKS, (8, 16, 32), strict=True):
        yield f"pos_{tokens}", (f"pos_emb_{side}/position_embedding/embeddings",), _EMBEDDING
        for i in (1, 2):
            for ours, theirs in (("h.0", "h"), ("mlp_gamma", "gamma"), ("mlp_beta", "beta")):
                yield from _dense(f"block_{tokens}.ln_{i}.{ours}", f"block_{side}/norm{i}/{theirs}")
        yield from _attention_and_mlp(f"block_{tokens}", f"block_{side}")
    yield "init.0.weight", ("init/layer_with_weights-0/kernel",), _DENSE
    yield from _convolution("conv_256", "conv_8")
    yield from _convolution("conv_1024", "conv_16")
    for i in range(stages):
        yield from _convolution(f"decoder.{4 * i + 1}", f"dec/layer_with_weights-{2 * i}")
        yield from _batch_norm(f"decoder.{4 * i + 2}", f"dec/layer_with_weights-{2 * i + 1}")
    yield from _convolution("ch_conv", "ch_conv")


def _discriminator(stages: int) -> Iterator[Rule]:
    yield from _convolution("inp_conv.0", "inp_conv/layer_with_weights-0", bias=False)
    for i in range(stages):
        for ours, theirs in (("main.0", "main/layer_with_weights-0"), ("main.3", "main/layer_with_weights-2")):
            yield from _convolution(f"encoder.{i}.{ours}", f"encoder/{i}/{theirs}", bias=False)
        yield from _convolution(f"encoder.{i}.direct.1", f"encoder/{i}/direct/layer_with_weights-0", bias=False)
        yield from _batch_norm(f"encoder.{i}.main.1", f"encoder/{i}/main/layer_with_weights-1")
        yield from _batch_norm(f"encoder.{i}.main.4", f"encoder/{i}/main/layer_with_weights-3")
        yield from _batch_norm(f"encoder.{i}.direct.2", f"encoder/{i}/direct/layer_with_weights-1")
    yield "pos_256", ("pos_emb_8/position_embedding/embeddings",), _EMBEDDING
    for i in (1, 2):
        yield f"block_256.ln_{i}.weight", (f"block_8/norm{i}/gamma",), _AS_IT_IS
        yield f"block_256.ln_{i}.bias", (f"block_8/norm{i}/beta",), _AS_IT_IS
    yield from _attention_and_mlp("block_256", "block_8")
    yield from _convolution("conv_256", "conv_4")
    yield from _convolution("logits.0", "down_4/layer_with_weights-0", bias=False)
    yield from _convolution("logits.2", "down_4/layer_with_weights-1", bias=False)


def _attention_and_mlp(ours: str, theirs: str) -> Iterator[Rule]:
    yield from _dense(f"{ours}.attn.to_qkv", *(f"{theirs}/attn/{layer}" for layer in ("wq", "wk", "wv")))
    for layer in ("q_attn", "to_out"):
        yield from _dense(f"{ours}.attn.{layer}", f"{theirs}/attn/{layer}")
    for i, layer in ((0, "layer_with_weights-0"), (2, "layer_with_weights-1")):
        yield from _dense(f"{ours}.mlp.{i}", f"{theirs}/mlp/{layer}")


def _dense(ours: str, *theirs: str) -> Iterator[Rule]:
    yield f"{ours}.weight", tuple(f"{layer}/kernel" for layer in theirs), _DENSE
    yield f"{ours}.bias", tuple(f"{layer}/bias" for layer in theirs), _AS_IT_IS


def _convolution(ours: str, theirs: str, bias: bool = True) -> Iterator[Rule]:
    yield f"{ours}.weight", (f"{theirs}/kernel",), _CONVOLUTION
    if bias:
        yield f"{ours}.bias", (f"{theirs}/bias",), _AS_IT_IS


def _batch_norm(ours: str, theirs: str) -> Iterator[Rule]:
    pairs = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for key, variable in pairs.items():
        yield f"{ours}.{key}", (f"{theirs}/{variable}",), _AS_IT_IS
    yield f"{ours}.num_batches_tracked", (), ()
