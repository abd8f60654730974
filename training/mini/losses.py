"""What a result is compared by."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


def _gradient_loss(d: Tensor) -> Tensor:
    return (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()


def picture_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 on pixels, on their differences, and on 8-pixel means; pictures in [-1, 1]."""
    d = a - b
    return d.abs().mean() + _gradient_loss(d) + functional.avg_pool2d(d, 8).abs().mean()


class Discriminator(nn.Module):
    """Says of every place of a picture whether it looks drawn (high) or painted by the model (low).

    Relativistic: a painting is compared with its own drawing (Jolicoeur-Martineau 2018), and how much the
    opinion changes by a little noise is penalised, which stands for the gradient penalty of Roth et al. 2017.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = (3, width, 2 * width, 4 * width, 4 * width)
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        opinion: Tensor = self.layers(x)
        return opinion.float()

    def own_loss(self, painted: Tensor, drawn: Tensor, noise: float = 0.05, penalty: float = 0.05) -> Tensor:
        """What the discriminator minimises; pictures in [-1, 1]."""
        pictures = torch.cat([painted, drawn])
        both, disturbed = self(torch.cat([pictures, pictures + noise * torch.randn_like(pictures)])).chunk(2)
        fake, real = both.chunk(2)
        change = ((both - disturbed) / noise).square().mean()
        loss: Tensor = functional.softplus(fake - real).mean() + penalty * change
        return loss

    def opinion(self, painted: Tensor, drawn: Tensor) -> Tensor:
        """What the model minimises."""
        fake, real = self(torch.cat([painted, drawn])).chunk(2)
        return functional.softplus(real - fake).mean()
