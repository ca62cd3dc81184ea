"""Argument checks: every message names the argument, what came and what was expected."""

import torch
from torch import Tensor

from ..reference.precision import accumulate_dtype

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tokens(name: str, x: Tensor) -> None:
    """x is a floating-point [B, N, D] with at least one token and one channel."""
    if x.dim() != 3:
        raise ValueError(f"{name}: got shape {shape(x)}, expected [B, N, D]")
    floating(name, x)
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"{name}: got shape {shape(x)}, expected at least one token and one channel (N > 0, D > 0)")


def by_heads(name: str, x: Tensor, letters: str, beside: tuple[str, Tensor] | None = None) -> None:
    """x has four dimensions, none but the first empty, and a floating dtype; beside another also its batch, heads and so on."""
    if x.dim() != 4:
        raise ValueError(f"{name}: got shape {shape(x)}, expected {letters}")
    floating(name, x)
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: got shape {shape(x)}, expected at least one head, token and channel")
    if beside is None:
        return
    other_name, other = beside
    if x.shape[:2] != other.shape[:2]:
        raise ValueError(f"{name}: got shape {shape(x)}, expected {other_name}'s B and H, {list(other.shape[:2])}")
    same_kind(name, x, other_name, other)


def like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """tensor has other's shape, dtype and device."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name}: got shape {shape(tensor)}, expected {other_name}'s shape {shape(other)}")
    same_kind(name, tensor, other_name, other)


def projection(name: str, tensor: Tensor, expected: tuple[int, ...], letters: str, other_name: str, other: Tensor) -> None:
    """tensor has the expected shape, and other's dtype and device, as a product of matrices asks for."""
    if tensor.shape != expected:
        raise ValueError(f"{name}: got shape {shape(tensor)}, expected {letters} = {list(expected)}")
    same_kind(name, tensor, other_name, other)


def parameter(name: str, tensor: Tensor, expected: tuple[int, ...], letters: str, other_name: str, other: Tensor) -> None:
    """tensor has the expected shape, other's device, and other's dtype or the one sums are kept in."""
    if tensor.shape != expected:
        raise ValueError(f"{name}: got shape {shape(tensor)}, expected {letters} = {list(expected)}")
    if tensor.dtype != other.dtype and tensor.dtype != accumulate_dtype(other.dtype):
        wide = accumulate_dtype(other.dtype)
        allowed = f"{wide}" if wide == other.dtype else f"{other.dtype} or {wide}"
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {allowed} beside {other_name} in {other.dtype}")
    same_device(name, tensor, other_name, other)


def score_weight(weight: Tensor, other_name: str, x: Tensor, per_head: bool) -> None:
    """weight is [H, D] for x [B, N, D], and H divides D where each head pools its own slice."""
    channels = x.shape[2]
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"score_weight: got shape {shape(weight)}, expected [H, D] with D = {channels} and H > 0")
    parameter("score_weight", weight, (weight.shape[0], channels), "[H, D]", other_name, x)
    if per_head and channels % weight.shape[0]:
        raise ValueError(f"score_weight: got H = {weight.shape[0]} heads, expected a divisor of D = {channels}")


def mask(mask: Tensor | None, other_name: str, x: Tensor) -> None:
    """mask is None or a boolean [B, N]."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got dtype {mask.dtype}, expected torch.bool (True = the token takes part)")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask: got shape {shape(mask)}, expected [B, N] = {list(x.shape[:2])}")
    same_device("mask", mask, other_name, x)


def floating(name: str, x: Tensor) -> None:
    """x has a dtype that the kernels take."""
    if x.dtype not in FLOATING:
        raise TypeError(f"{name}: got dtype {x.dtype}, expected float32, bfloat16, float16 or float64")


def same_kind(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """tensor has other's dtype and device."""
    if tensor.dtype != other.dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, expected {other_name}'s dtype {other.dtype}")
    same_device(name, tensor, other_name, other)


def same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """tensor is on other's device."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {other_name}'s device {other.device}")


def shape(tensor: Tensor) -> list[int]:
    """A tensor's shape as a message shows it."""
    return list(tensor.shape)
