"""Every module and model is built in the dtype and on the device asked for, as torch's are."""

from itertools import chain

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from lada_kernels import modules
from lada_kernels.models import ladagan, stylegan2, vitgan
from lada_kernels.modules.convolution import Conv2d
from lada_kernels.modules.norm import LayerNorm

TOKENS, MAP, SMALL_MAP, IMAGE = (2, 5, 8), (2, 8, 6, 6), (2, 3, 6, 6), (2, 3, 32, 32)
VIT = {"dim": 8, "heads": 2, "mlp_dim": 8, "blocks": 1}
LADA_G = {"dim": (16, 8, 8), "noise_dim": 4, "heads": (2, 2, 2), "mlp_dim": (8, 8, 8)}
LADA_D = {"enc_dim": (4, 8), "out_dim": (8, 8), "heads": 2, "mlp_dim": 8}

# Class, its arguments, and the shapes of what it is called with; positions are called with the sides of their grid.
CASES = {
    "LadaAttention": (modules.LadaAttention, (8, 2), {}, [TOKENS]),
    "LadaAttention2d": (modules.LadaAttention2d, (8, 2), {"gate": True}, [MAP]),
    "BatchNorm2d": (modules.BatchNorm2d, (8,), {}, [MAP]),
    "Conv2d": (Conv2d, (8, 4, 3), {}, [MAP]),
    "EqualizedConv2d": (modules.EqualizedConv2d, (8, 4, 3), {}, [MAP]),
    "EqualizedLinear": (modules.EqualizedLinear, (8, 4), {}, [TOKENS]),
    "MappingNetwork": (modules.MappingNetwork, (8, 2), {}, [(2, 8)]),
    "Ladaformer": (modules.Ladaformer, (5, 8, 2, 8), {}, [TOKENS]),
    "SMLadaformer": (modules.SMLadaformer, (8, 4, 2, 8), {}, [TOKENS, (2, 4)]),
    "ModulatedConv2d": (modules.ModulatedConv2d, (8, 4, 3, 4), {"upsample": True}, [MAP, (2, 4)]),
    "StyledConv2d": (modules.StyledConv2d, (8, 4, 3, 4), {}, [MAP, (2, 4)]),
    "ToRGB": (modules.ToRGB, (8, 4), {}, [MAP, (2, 4)]),
    "LayerNorm": (LayerNorm, (8,), {}, [TOKENS]),
    "SelfModulatedLayerNorm": (modules.SelfModulatedLayerNorm, (8, 4), {}, [TOKENS, (2, 4)]),
    "PatchEmbedding": (modules.PatchEmbedding, (2, 8), {}, [SMALL_MAP]),
    "SinePosition": (modules.SinePosition, (8,), {}, [3, 4]),
    "DotProductAttention": (modules.DotProductAttention, (8, 2), {"equalized": True}, [TOKENS]),
    "L2Attention": (modules.L2Attention, (8, 2), {}, [TOKENS]),
    "Blur": (modules.Blur, (), {}, [MAP]),
    "BlurDownsample": (modules.BlurDownsample, (), {}, [MAP]),
    "BlurUpsample": (modules.BlurUpsample, (), {}, [MAP]),
    "ViTBlock": (modules.ViTBlock, (8, 2, 8), {"spectral_norm": True}, [TOKENS]),
    "StyledViTBlock": (modules.StyledViTBlock, (8, 2, 8, 4), {"spectral_norm": True}, [TOKENS, (2, 4)]),
    "ladagan.Generator": (ladagan.Generator, (32,), LADA_G, [(2, 4)]),
    "ladagan.Generator decoder": (ladagan.Generator, (64,), LADA_G | {"decoder_dim": (4,), "flavor": "tf"}, [(2, 4)]),
    "ladagan.Discriminator": (ladagan.Discriminator, (), LADA_D, [IMAGE]),
    "ladagan.Discriminator tf": (ladagan.Discriminator, (), LADA_D | {"flavor": "tf"}, [IMAGE]),
    "stylegan2.Discriminator": (stylegan2.Discriminator, (32, (4, 4, 4, 4)), {}, [IMAGE]),
    "vitgan.Generator": (vitgan.Generator, (16,), VIT | {"noise_dim": 4, "spectral_norm": True}, [(2, 4)]),
    "vitgan.Generator inr": (vitgan.Generator, (16,), VIT | {"noise_dim": 4, "output": "inr", "inr_dim": 4}, [(2, 4)]),
    "vitgan.Discriminator": (vitgan.Discriminator, (32,), VIT, [IMAGE]),
}
cases = pytest.mark.parametrize(("kind", "args", "kwargs", "inputs"), CASES.values(), ids=CASES)


def state(module):
    return list(chain(module.parameters(), module.buffers()))


def draw(inputs, dtype):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype) if isinstance(shape, tuple) else shape for shape in inputs]


def test_no_module_is_left_out():
    public = {kind for kind in vars(modules).values() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert public - {case[0] for case in CASES.values()} == {modules.OnFeatureMap}  # it has no state of its own


@cases
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype(kind, args, kwargs, inputs, dtype):
    module = kind(*args, **kwargs, dtype=dtype)
    assert {tensor.dtype for tensor in state(module) if tensor.is_floating_point()} == {dtype}
    assert module(*draw(inputs, dtype)).dtype == dtype


@cases
def test_meta_device(kind, args, kwargs, inputs):
    asked = kind(*args, **kwargs, device="meta")
    with torch.device("meta"):
        around = kind(*args, **kwargs)
    assert all(tensor.is_meta for tensor in state(asked) + state(around))


@cases
def test_without_initialisation(kind, args, kwargs, inputs):
    """It computes what is loaded into it: nothing that a state dict leaves out is left undefined."""
    expected = kind(*args, **kwargs).eval()
    module = skip_init(kind, *args, **kwargs, device="cpu").eval()
    for tensor in state(module):
        tensor.detach().fill_(7)
    module.load_state_dict(expected.state_dict())
    inputs = draw(inputs, torch.float32)
    assert torch.equal(module(*inputs), expected(*inputs))
