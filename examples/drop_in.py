"""Swap the attention of a model for the fused one: the same R1 step before and after, compared and timed.

pip install .
python examples/drop_in.py              # some seconds
"""

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from lada_kernels import replace_attention


class AdditiveAttention(nn.Module):
    """LadaGAN's attention in plain torch, with the official code's names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.to_qkv, self.q_attn, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, heads), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        alpha = (self.q_attn(q) * self.scale).softmax(dim=1)  # [B, N, H], over the tokens
        g = (alpha[..., None] * q.unflatten(-1, (self.heads, -1))).sum(1).flatten(1)  # [B, D]
        return self.to_out(g[:, None] * k * v)


def r1_step(critic: nn.Module, tokens: Tensor) -> Tensor:
    """Gradients of R1, which differentiates a gradient itself, by all weights: [weights]."""
    (slope,) = torch.autograd.grad(critic(tokens).sum(), tokens, create_graph=True)
    penalty = slope.square().sum((1, 2)).mean()
    gradients = torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


torch.manual_seed(0)
critic = nn.Sequential(nn.LayerNorm(128), AdditiveAttention(128, heads=4), nn.Linear(128, 1))
tokens = torch.randn(8, 1024, 128, requires_grad=True)  # [B, N, D]
timer = Timer("r1_step(critic, tokens)", globals=globals())

before, time_before = r1_step(critic, tokens), timer.blocked_autorange(min_run_time=1).median
print(replace_attention(critic))
after, time_after = r1_step(critic, tokens), timer.blocked_autorange(min_run_time=1).median

print(f"gradients of R1 differ by {(after - before).norm() / before.norm():.1e} of their norm")
print(f"R1 step: {1e3 * time_before:.1f} ms before, {1e3 * time_after:.1f} ms after")
