"""What the kernels are measured against: LadaGAN as its official PyTorch code composes it, from plain torch operations.

Written from the equations (arXiv 2401.09596) in the official order of operations: separate scale, softmax, head
splits, einsum and products, a LayerNorm followed by its modulation.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_kernels.models.ladagan import SamePadConv2d
from lada_kernels.modules import BatchNorm2d, LadaAttention, SelfModulatedLayerNorm
from lada_kernels.modules.convolution import Conv2d
from lada_kernels.modules.norm import LayerNorm
from lada_kernels.modules.resample import MeanPool
from lada_kernels.training.augment import augment
from lada_kernels.training.data import Sampler, to_float
from lada_kernels.training.trainer import Trainer


def by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, N, d]


def plain_pool(x: Tensor, score_weight: Tensor, score_bias: Tensor | None = None, *, per_head: bool = True) -> Tensor:
    """Tokens pooled by softmax: x [B,N,D], score_weight [H,D] -> [B,H,D/H], or [B,H,D] where each head pools all channels."""
    heads, channels = score_weight.shape
    logits = functional.linear(x, score_weight, score_bias) * (channels // heads) ** -0.5  # [B, N, H]
    weights = logits.transpose(1, 2).softmax(dim=-1)  # [B, H, N]
    return torch.einsum("bhn,bhnd->bhd", weights, by_head(x, heads)) if per_head else weights @ x


def plain_gated_product(g: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """g [B,D], k and v [B,N,D] -> [B,N,D]."""
    k = k * g.unsqueeze(1)
    return v * k


def plain_attention(q: Tensor, k: Tensor, v: Tensor, score_weight: Tensor, score_bias: Tensor | None = None) -> Tensor:
    """The attention core: q, k, v [B,N,D], score_weight [H,D] -> [B,N,D]."""
    heads = score_weight.shape[0]
    global_query = plain_pool(q, score_weight, score_bias).unsqueeze(2)  # [B, H, 1, d]
    k, v = by_head(k, heads), by_head(v, heads)
    k = k * global_query
    return (v * k).transpose(1, 2).flatten(2)


def plain_modulated_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    """x [B,N,D], gamma and beta [B,D] -> [B,N,D]."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps) * gamma.unsqueeze(1) + beta.unsqueeze(1)


class PlainAttention(nn.Module):
    """The official module's order of operations on the parameters of a `LadaAttention`."""

    def __init__(self, attention: LadaAttention) -> None:
        super().__init__()
        self.to_qkv, self.q_attn, self.to_out = attention.to_qkv, attention.q_attn, attention.to_out

    def forward(self, x: Tensor, *, mask: None = None, return_weights: bool = False) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out(plain_attention(q, k, v, self.q_attn.weight, self.q_attn.bias))


class PlainModulatedNorm(nn.Module):
    """The official self-modulated LayerNorm on the parameters of a `SelfModulatedLayerNorm`."""

    def __init__(self, norm: SelfModulatedLayerNorm) -> None:
        super().__init__()
        self.h, self.mlp_gamma, self.mlp_beta, self.eps = norm.h, norm.mlp_gamma, norm.mlp_beta, norm.eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h = self.h(z)
        return plain_modulated_layer_norm(x, self.mlp_gamma(h), self.mlp_beta(h), self.eps)


def plain_batch_norm(norm: BatchNorm2d) -> nn.BatchNorm2d:
    """torch's own on the parameters and buffers of ours."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    plain.weight, plain.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        plain.register_buffer(name, buffer)
    return plain


class PlainSamePad(nn.Conv2d):
    """0 before and 1 after, TensorFlow's "same"."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


def plain_convolution(ours: Conv2d) -> nn.Conv2d:
    """torch's own on the parameters of ours."""
    kind = PlainSamePad if isinstance(ours, SamePadConv2d) else nn.Conv2d
    plain = kind(ours.in_channels, ours.out_channels, ours.kernel_size, ours.stride, ours.padding, device="meta")
    plain.weight, plain.bias = ours.weight, ours.bias
    return plain


def plain_layer_norm(norm: LayerNorm) -> nn.LayerNorm:
    """torch's own on the parameters of ours."""
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps)
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


def make_plain(model: nn.Module) -> nn.Module:
    """Replace our modules inside `model` by their plain twins, in place, sharing the parameters."""
    plain = {
        LadaAttention: PlainAttention,
        SelfModulatedLayerNorm: PlainModulatedNorm,
        BatchNorm2d: plain_batch_norm,
        LayerNorm: plain_layer_norm,
        Conv2d: plain_convolution,
        SamePadConv2d: plain_convolution,
        MeanPool: lambda _: nn.AvgPool2d(2),
    }
    for name, child in model.named_children():
        if type(child) in plain:
            setattr(model, name, plain[type(child)](child))
        else:
            make_plain(child)
    return model


class OfficialStep:
    """The official script's training step on plain modules, its logging aside; starts from a trainer's weights and data."""

    def __init__(self, trainer: Trainer) -> None:
        self.config, self.images, self.device = trainer.config, trainer.images, trainer.device
        optim = self.config.optim
        self.generator = make_plain(copy.deepcopy(trainer.generator))
        self.discriminator = make_plain(copy.deepcopy(trainer.discriminator))
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.g_opt = torch.optim.Adam(self.generator.parameters(), optim.g_lr, optim.betas)
        self.d_opt = torch.optim.Adam(self.discriminator.parameters(), optim.d_lr, optim.betas)
        self.sampler = Sampler(len(self.images), optim.batch_size, self.config.seed)

    def fakes(self) -> Tensor:
        latents = torch.randn(self.config.optim.batch_size, self.config.generator.noise_dim, device=self.device)
        return augment(self.generator(latents), self.config.optim.augment)

    def step(self) -> Tensor:
        """Returns D's loss, the penalty included."""
        optim, generator, discriminator = self.config.optim, self.generator, self.discriminator
        # The script asks for the gradient before it augments: the penalty's reaches back to the pixels.
        pixels = self.images[next(self.sampler)].to(self.device)
        reals = augment(to_float(pixels).requires_grad_(), optim.augment)
        generator.requires_grad_(False)
        discriminator.requires_grad_(True)
        real_logits = discriminator(reals)
        fake_logits = discriminator(self.fakes().detach())
        (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
        penalty = optim.r1 * gradient.square().sum((1, 2, 3)).mean()
        d_loss = functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean() + penalty
        discriminator.zero_grad()
        d_loss.backward()
        self.d_opt.step()

        generator.requires_grad_(True)
        discriminator.requires_grad_(False)
        g_loss = functional.softplus(-discriminator(self.fakes())).mean()
        generator.zero_grad()
        g_loss.backward()
        self.g_opt.step()
        with torch.no_grad():
            for mean, value in zip(self.ema.parameters(), generator.parameters(), strict=True):
                mean.mul_(optim.ema_decay).add_(value, alpha=1 - optim.ema_decay)
        return d_loss.detach()
