"""R1 through every module under torch's compilers, and of exported modules."""

import compilers
import pytest
import torch

from lada_kernels.models import ladagan, stylegan2, vitgan
from lada_kernels.modules import (
    BatchNorm2d,
    DotProductAttention,
    L2Attention,
    LadaAttention,
    LadaAttention2d,
    Ladaformer,
    SelfModulatedLayerNorm,
    SMLadaformer,
)
from lada_kernels.modules.convolution import Conv2d
from lada_kernels.modules.equalized import EqualizedConv2d
from lada_kernels.modules.norm import LayerNorm
from lada_kernels.modules.resample import Blur, BlurDownsample, BlurUpsample, MeanPool

TOKENS, MAPS = (3, 5, 8), (3, 8, 4, 6)
CASES = {
    "attention, folded": (lambda: LadaAttention(8, 2, fold_query=True), [TOKENS]),
    "attention, unfolded": (lambda: LadaAttention(8, 2, fold_query=False), [TOKENS]),
    "attention, recomputed": (lambda: LadaAttention(8, 2, recompute=True), [TOKENS]),
    "attention of maps": (lambda: LadaAttention2d(8, 2, gate=True), [MAPS]),
    "block": (lambda: Ladaformer(5, 8, 2, 16), [TOKENS]),
    "modulated block": (lambda: SMLadaformer(8, 6, 2, 16), [TOKENS, (3, 6)]),
    "modulated norm": (lambda: SelfModulatedLayerNorm(8, 6), [TOKENS, (3, 6)]),
    "norm": (lambda: LayerNorm(8), [TOKENS]),
    "dot product": (lambda: DotProductAttention(8, 2), [TOKENS]),
    "distance": (lambda: L2Attention(8, 2), [TOKENS]),
    "batch norm": (lambda: BatchNorm2d(8), [MAPS]),
    "convolution": (lambda: Conv2d(8, 5, 3, padding=1), [MAPS]),
    "equalised convolution": (lambda: EqualizedConv2d(8, 5, 3, padding=1), [MAPS]),
    "blur": (Blur, [MAPS]),
    "half": (BlurDownsample, [MAPS]),
    "double": (BlurUpsample, [MAPS]),
    "mean": (MeanPool, [MAPS]),
    "LadaGAN": (lambda: ladagan.Discriminator((4, 8), (8, 8), 2, 8), [(2, 3, 32, 32)]),
    "ViTGAN": (
        lambda: vitgan.Discriminator(16, dim=12, heads=3, mlp_dim=16, blocks=1, spectral_norm=False),
        [(2, 3, 16, 16)],
    ),
    "StyleGAN2": (lambda: stylegan2.Discriminator(16, [4, 6, 8]), [(2, 3, 16, 16)]),
}


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    module, shapes = CASES[name]
    made = module().to(dtype)
    return made, [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def first(module):
    """What it returns, or the first of that."""

    def call(*inputs):
        out = module(*inputs)
        return out[0] if isinstance(out, tuple) else out

    return call


WHOLE = ("LadaGAN", "ViTGAN", "StyleGAN2")  # inductor takes minutes


@pytest.mark.parametrize(
    ("name", "compiler"),
    [(name, compiler) for name in CASES for compiler in compilers.COMPILERS if (compiler, name in WHOLE) != ("inductor", True)],
)
def test_r1_is_right_or_refused_by_compilers(name, compiler):
    module, inputs = make(name)  # in float64: some gradients are zero but for rounding
    compilers.judge(first(module), inputs, list(module.parameters()), compiler)


@pytest.mark.parametrize("name", CASES)
def test_exported_modules_train(name):
    module, inputs = make(name)
    program = torch.export.export(module, tuple(inputs)).module()

    def orders(function, named):
        out = first(function)(*inputs)
        parameters = [parameter for _, parameter in sorted(named)]
        plain = torch.autograd.grad(out.square().sum(), [*inputs, *parameters], create_graph=True, materialize_grads=True)
        penalty = compilers.penalty(plain[: len(inputs)])
        return [out, *plain, *torch.autograd.grad(penalty, [*inputs, *parameters], materialize_grads=True)]

    for got, expected in zip(
        orders(program, program.named_parameters()), orders(module, module.named_parameters()), strict=True
    ):
        torch.testing.assert_close(got, expected)
