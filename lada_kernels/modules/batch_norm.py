"""BatchNorm2d whose double backward is worth having: what R1 pays for in LadaGAN's discriminator.

Over several processes the means are those of all, which torch's fused passes know nothing of: there, torch's plain operations
are differentiated.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lada_kernels.ops.batch_norm import batch_norm


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, parameters and buffers included, with a lean double backward in training mode.

    Differentiable twice; a third derivative raises ``NotImplementedError``. In evaluation mode it is torch's own.

    Where ``synchronized`` is set, see `synchronize_batch_norm`, training mode takes mean and variance, also for the running
    statistics, over the items of all processes. A gradient is then of the sum of all processes' losses: R1, too, is what one
    process would compute with all items. It is differentiable any number of times, by more passes over the items.
    """

    synchronized = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        lean = self.affine and self.track_running_stats and torch.is_grad_enabled()
        if not self.training or not (lean or self.synchronized) or x.numel() == 0:
            return super().forward(x)
        self._check_input_dim(x)
        if x.numel() == x.shape[1] and not self.synchronized:
            raise ValueError(f"x: got shape {list(x.shape)}, expected more than 1 value per channel when training")
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if self.synchronized:
            return self._over_processes(x, momentum)
        return batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, momentum, self.eps)

    def _over_processes(self, x: Tensor, momentum: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)  # [C]
        mean, variance, count = _merge(mean, variance, x.numel() // x.shape[1])
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (wide * _channels(scale) + _channels(self.bias - mean * scale)).to(x.dtype)


def synchronize_batch_norm(model: nn.Module) -> None:
    """From now on, normalise over the items of all processes of torch.distributed's default group, in place.

    All of them then have to call the model, and to differentiate it, in the same order. As `torch.nn.SyncBatchNorm`, but on
    any device, and differentiable twice.

    Raises:
        ValueError: a batch norm in ``model`` is not a `BatchNorm2d` with parameters and running statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            if not (isinstance(module, BatchNorm2d) and module.affine and module.track_running_stats):
                raise ValueError(f"model: got {module} as {name!r}, expected lada_kernels' BatchNorm2d, affine and tracking")
            module.synchronized = True


def _merge(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance [C] and number of all processes' values, from each one's own; the first two are differentiable."""
    own = torch.stack((mean, variance, torch.full_like(mean, count)))  # [3, C]
    place = mean.new_zeros(dist.get_world_size(), 1, 1)
    place[dist.get_rank()] = 1
    # A sum in which each has a place of its own; its gradient is the sum of all processes' gradients.
    means, variances, counts = all_reduce(place * own).unbind(1)  # [processes, C]
    total = counts.detach().sum(0)
    share = counts.detach() / total
    merged = (share * means).sum(0)
    spread = (share * (variances + (means - merged).square())).sum(0)
    return merged, spread, total


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]  # [C, 1, 1]
