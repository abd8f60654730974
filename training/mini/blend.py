"""Blend two checkpoints of one origin: `python -m training.mini.blend GENERAL REFINED SHARE --export DIR`.

The straight line between a general model and its refinement keeps most of both (Wortsman et al. 2022, "Robust
fine-tuning of zero-shot models").
"""

import argparse
from pathlib import Path

import torch

from training.mini.model import Parts


def blend(general: Path, refined: Path, share: float) -> Parts:
    """The parts whose weights lie `share` of the way from the general to the refined checkpoint."""
    parts, other = Parts(), Parts()
    parts.load(general)
    other.load(refined)
    with torch.no_grad():
        for ours, theirs in zip(parts.parameters(), other.parameters(), strict=True):
            ours.lerp_(theirs, share)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description="Blend two checkpoints of the embedded model.")
    parser.add_argument("general", type=Path)
    parser.add_argument("refined", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("--export", type=Path, required=True)
    arguments = parser.parse_args()
    blend(arguments.general, arguments.refined, arguments.share).export(arguments.export)


if __name__ == "__main__":
    main()
