"""Layer normalisation with a scale and shift per batch element, differentiable twice."""

from torch import Tensor

from ..reference.precision import accumulate_dtype
from . import checks
from .define import Op


def modulated_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-6) -> Tensor:
    r"""LayerNorm over channels without affine, then γ_b and β_b: LadaGAN's self-modulated LayerNorm (arXiv 2401.09596).

    y = γ_b ⊙ (x − mean) / sqrt(var + eps) + β_b, with the biased variance, as `torch.nn.functional.layer_norm`.

    Args:
        x: [B, N, D]; float32, bfloat16, float16 or float64. B may be 0. Read in place if its last dimension is dense.
        gamma, beta: [B, D], in x's dtype or the accumulation dtype (float32; float64 for float64); an expanded [D] will do.
        eps: added to the variance; default 1e-6.

    Returns:
        [B, N, D] in x's dtype.

    Raises:
        ValueError: a shape, a device, or N = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("x", x)
    expected = (x.shape[0], x.shape[2])
    checks.parameter("gamma", gamma, expected, "[B, D]", "x", x)
    checks.parameter("beta", beta, expected, "[B, D]", "x", x)
    if gamma.dtype != beta.dtype:
        raise TypeError(f"beta: got dtype {beta.dtype}, expected gamma's dtype {gamma.dtype}")
    return _modulated_layer_norm(x, gamma, beta, float(eps))[0]


def _shapes(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=accumulate_dtype(x.dtype))
    return x.new_empty(x.shape), mean, mean.new_empty(mean.shape)


_modulated_layer_norm = Op[tuple[Tensor, Tensor, Tensor]](
    "modulated_layer_norm",
    _shapes,
    inputs=("x", "gamma", "beta"),
    options=("float eps",),
    results=("out", "mean", "rstd"),
    gradients=("x", "gamma", "beta"),
    saved=("x", "gamma", "mean", "rstd"),
    like={"beta": "gamma"},
    primary="x",
)
