"""The averaged weights, which are shipped, and the way back when training runs off."""

import torch
from torch import nn


class Average:
    """Exponential moving average of parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self.live = parameters
        self.shadow = [p.detach().clone() for p in self.live]
        self.good = [p.clone() for p in self.shadow]
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values in place."""
        for live, shadow in zip(self.live, self.shadow, strict=True):
            held = live.detach().clone()
            live.copy_(shadow)
            shadow.copy_(held)

    @torch.no_grad()
    def keep(self) -> bool:
        """Remember the averaged values as good ones, if all are finite."""
        finite = bool(nn.utils.get_total_norm(self.shadow).isfinite())
        if finite:
            torch._foreach_copy_(self.good, self.shadow)
        return finite

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the last good values."""
        torch._foreach_copy_(self.shadow, self.good)
        torch._foreach_copy_([p.detach() for p in self.live], self.good)

    def settle(self) -> None:
        """Leave the averaged values, or the last good ones, in the parameters."""
        if self.keep():
            self.swap()
        else:
            self.restore()
