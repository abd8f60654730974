"""What a result is compared by."""

from torch import Tensor
from torch.nn import functional


def _gradient_loss(d: Tensor) -> Tensor:
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def picture_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 on pixels, on their differences, and on 8-pixel means; pictures in [-1, 1]."""
    d = a - b
    return d.abs().mean() + _gradient_loss(d) + functional.avg_pool2d(d, 8).abs().mean()
