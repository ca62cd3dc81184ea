"""The gated product, differentiable twice."""

from torch import Tensor

from . import checks
from .define import Op


def gated_product(g: Tensor, k: Tensor, v: Tensor | None = None) -> Tensor:
    r"""g_i · k_ni · v_ni for every token n and channel i: the second half of LadaGAN's attention (arXiv 2401.09596).

    Args:
        g: [B, D], in k's dtype or the accumulation dtype (float32; float64 for float64).
        k, v: [B, N, D]; float32, bfloat16, float16 or float64, the same for both. Read in place if their last dimension is
            dense: the two halves of one projection need no copy. Without v, k is [B, N, 2D] and holds both side by side;
            its gradients then come in one piece too, where those of two halves would be copied together.

    Returns:
        [B, N, D] in k's dtype.

    Raises:
        ValueError: a shape, a device, or N = 0.
        TypeError: a dtype.
        NotImplementedError: in a third derivative.
    """
    checks.tokens("k", k)
    channels = k.shape[2]
    if v is not None:
        checks.like("v", v, "k", k)
    elif channels % 2:
        raise ValueError(f"k: got shape {checks.shape(k)}, expected [B, N, 2D] as v is not given")
    else:
        channels //= 2
    checks.parameter("g", g, (k.shape[0], channels), "[B, D]", "k", k)
    return GATED_PRODUCT(g, k, v)


def _shapes(g: Tensor, k: Tensor, v: Tensor | None) -> Tensor:
    return k.new_empty((*k.shape[:2], g.shape[1]))


GATED_PRODUCT = Op[Tensor](
    "gated_product",
    _shapes,
    inputs=("g", "k", "v?"),
    results=("out",),
    gradients=("g", "k", "v"),
    saved=("g", "k", "v"),
    primary="k",
)
