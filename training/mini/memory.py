"""What an optimiser remembers, kept in a file, so that a run can be split into pieces."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "memory.safetensors"


Learners = dict[str, tuple[nn.Module, torch.optim.Optimizer]]
"""Modules and what optimises them, by name."""


def remember(learners: Learners, folder: Path, whole: tuple[str, ...] = ()) -> None:
    """Write Adam's second moments in bfloat16 and its step counts, and the weights too of the modules named
    in `whole`.

    The first moments are left out: they build up anew within ten steps.
    """
    kept: dict[str, Tensor] = {}
    for title, (module, optimiser) in learners.items():
        for name, parameter in module.named_parameters():
            state = optimiser.state.get(parameter)
            if state:
                kept[f"{title}.{name}"] = state["exp_avg_sq"].to(torch.bfloat16).cpu().contiguous()
                kept[f"{title}.{name}.step"] = state["step"].float().cpu().reshape(1)
            if title in whole:
                kept[f"{title}.{name}.value"] = parameter.detach().to(torch.bfloat16).cpu().contiguous()
    partial = folder / "memory.partial"
    save_file(kept, partial)
    partial.replace(folder / FILE)


@torch.no_grad()
def recall(learners: Learners, folder: Path) -> bool:
    """Give modules and optimisers what `remember` wrote; False if it did not."""
    if not (folder / FILE).is_file():
        return False
    kept = load_file(folder / FILE)
    for title, (module, optimiser) in learners.items():
        for name, parameter in module.named_parameters():
            if f"{title}.{name}.value" in kept:
                parameter.copy_(kept[f"{title}.{name}.value"])
            squares = kept.get(f"{title}.{name}")
            if squares is not None:
                optimiser.state[parameter] = {
                    "step": kept[f"{title}.{name}.step"][0].to(parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": squares.to(parameter.device, parameter.dtype).reshape(parameter.shape),
                }
    return True
