"""A small critic that learns to tell windows of results from windows of renderings.

Pixel by pixel losses are least for the mean of what is possible, a blur. What the critic finds missing pushes
the results towards what renderings look like, in late training only and with a bounded share of the gradient.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.mini.graphs import Twin


class Critic(nn.Module):
    """Scores patches of about 40 pixels, knowing the prompt."""

    def __init__(self, prompt_width: int, width: int = 48) -> None:
        super().__init__()
        wide = 4 * width

        def layer(before: int, after: int, stride: int) -> nn.Module:
            size = 4 if stride == 2 else 3
            return nn.Sequential(
                nn.Conv2d(before, after, size, stride, 1), nn.GroupNorm(8, after), nn.LeakyReLU(0.2)
            )

        first = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2))
        self.layers = nn.ModuleList(
            [first, layer(width, 2 * width, 2), layer(2 * width, wide, 2), layer(wide, wide, 1)]
        )
        self.score = nn.Conv2d(wide, 1, 1)
        self.prompt = nn.Linear(prompt_width, wide)

    def forward(self, pictures: Tensor, prompt: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (B, 1, h, w), high for renderings, and the features of every layer; pictures
        (B, 3, H, W) in [-1, 1], prompts (B, prompt_width).
        """
        features, x = [], pictures
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        wanted = self.prompt(prompt)[:, :, None, None]
        return self.score(x) + (x * wanted).mean(1, keepdim=True), features


class Rival:
    """The critic with its optimiser, inside and after a recorded step."""

    def __init__(self, critic: Critic, layout: torch.memory_format, rate: float) -> None:
        self.critic = critic
        self.twin = Twin([critic], layout)
        self.optimiser = torch.optim.AdamW(
            self.twin.parameters, lr=rate, betas=(0.5, 0.99), weight_decay=0.01, fused=True
        )

    def pull(self, shown: Tensor, real: Tensor, prompt: Tensor, strength: Tensor) -> Tensor:
        """Write the critic's own gradients, and return a gradient at `shown`, in every row of the norm
        `strength`, that asks for pictures more like `real`.

        `shown` and `real` are windows (B, 3, H, W) in [-1, 1], `prompt` is (B, prompt_width) and
        `strength` (B,).
        """
        self.twin.take()
        critic, half = self.twin.modules[0], self.twin.dtype
        prompt = prompt.detach().to(half)
        fake, found = critic(shown.to(half, memory_format=self.twin.layout), prompt)
        true, wanted = critic(real.to(half, memory_format=self.twin.layout), prompt)
        hinge = functional.relu(1 - true.float()).mean() + functional.relu(1 + fake.float()).mean()
        self.twin.give(hinge, keep=True)
        likeness = [(a.float() - b.detach().float()).abs().mean() for a, b in zip(found, wanted, strict=True)]
        aim = -fake.float().mean() + 2 * torch.stack(likeness).mean()
        pull = torch.autograd.grad(aim, shown)[0]
        norm = pull.flatten(1).norm(dim=1) + 1e-12
        scaled: Tensor = pull * (strength / norm).view(-1, 1, 1, 1)
        return scaled

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.twin.parameters, 1.0)
        self.optimiser.step()
