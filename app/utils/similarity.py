"""The stochastic similarity filter: frames too like the last one need no work.

After StreamDiffusion (arXiv:2312.12491, section 3.4): a frame is skipped with the probability
max(0, (s - eta) / (1 - eta)), s being its similarity to the last frame that was made and eta the
threshold. The paper's cosine similarity does not see a fade (the cosine of x and x/2 is 1), nor a small
thing that moves in a large picture; this one is 1 - d, where d is the mean absolute difference, relative
to the full range, of the block and colour that differ most.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Side of a block in pixels: small enough that a moving hand fills one, large enough to average out noise."""


def similarity(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """1 for equal pictures down to 0; both are RGB, uint8, of the same shape (height, width, 3)."""
    height, width = one.shape[:2]
    blocks = (max(1, width // BLOCK), max(1, height // BLOCK))
    differences = cv2.resize(cv2.absdiff(one, other), blocks, interpolation=cv2.INTER_AREA)
    return 1 - float(differences.max()) / 255


class SimilarityFilter:
    """Decides which frames of one session are skipped.

    Args:
        threshold: eta, the similarity from which a frame may be skipped, 0 to 1.
        max_skip: how many frames in a row are skipped at most.
        seed: of its own randomness; the same frames are skipped the same way.
    """

    def __init__(self, threshold: float, max_skip: int, seed: int = 0) -> None:
        self._threshold = threshold
        self._max_skip = max_skip
        self._random = random.Random(seed)
        self._reference: NDArray[np.uint8] | None = None
        self._skipped = 0

    def skips(self, image: NDArray[np.uint8]) -> bool:
        """Whether to skip this frame. One that is not skipped is what the next ones are compared with."""
        reference = self._reference  # read once: `reset` may come from another thread meanwhile
        if reference is not None and self._skipped < self._max_skip:
            alike = similarity(image, reference)
            if self._random.random() < self._probability(alike):
                self._skipped += 1
                return True
        self._reference = image
        self._skipped = 0
        return False

    def reset(self) -> None:
        """Do not skip the next frame: the last one was not made, or its parameters have changed."""
        self._reference = None

    def _probability(self, alike: float) -> float:
        if self._threshold >= 1:
            return float(alike >= 1)
        return (alike - self._threshold) / (1 - self._threshold)
