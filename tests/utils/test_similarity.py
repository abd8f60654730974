"""What the similarity filter sees, and how often it skips."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from app.utils.similarity import SimilarityFilter, similarity

Array = NDArray[np.uint8]


def picture(seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)


def test_equal_pictures_are_alike_and_opposite_ones_are_not() -> None:
    assert similarity(picture(), picture()) == 1
    assert similarity(np.zeros_like(picture()), np.full_like(picture(), 255)) == 0


def test_a_fade_is_seen() -> None:
    # The paper's cosine similarity of these two is 1.
    assert similarity(picture(), picture() // 2) < 0.8


def test_a_small_thing_that_moves_is_seen() -> None:
    before, after = np.full((512, 512, 3), 90, np.uint8), np.full((512, 512, 3), 90, np.uint8)
    before[100:112, 100:112] = 200
    after[100:112, 116:128] = 200
    assert similarity(before, after) < 0.9


def test_a_change_of_texture_with_the_same_mean_is_seen() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    assert similarity(stripes, np.roll(stripes, 1, axis=0)) < 0.5


def test_the_noise_of_a_camera_is_not() -> None:
    random = np.random.default_rng(0)
    still = np.full((512, 512, 3), 120.0)
    one, other = ((still + random.normal(0, 2, still.shape)).astype(np.uint8) for _ in range(2))
    assert similarity(one, other) > 0.985


def test_equal_frames_are_skipped_up_to_the_most_in_a_row() -> None:
    skips = SimilarityFilter(0.98, max_skip=3)
    assert [skips.skips(picture()) for _ in range(9)] == [False, True, True, True] * 2 + [False]


def test_different_frames_are_never_skipped() -> None:
    skips = SimilarityFilter(0.98, max_skip=10)
    assert not any(skips.skips(picture(seed)) for seed in range(20))


@pytest.mark.parametrize(
    ("change", "expected"), [(0, 1.0), (1, 0.8), (2, 0.61), (4, 0.22), (5, 0.02), (6, 0)]
)
def test_the_share_of_skips_is_the_papers(change: int, expected: float) -> None:
    """max(0, (s - eta) / (1 - eta)) with s = 1 - change/255 and eta = 0.98."""
    base = np.full((64, 64, 3), 100, np.uint8)
    skips = SimilarityFilter(0.98, max_skip=10**9, seed=1)
    assert not skips.skips(base)
    count = 0
    for _ in range(2000):
        if skips.skips(base + np.uint8(change)):
            count += 1
        else:
            skips.reset()
            skips.skips(base)
    assert count / 2000 == pytest.approx(expected, abs=0.03)


def test_the_same_seed_decides_the_same_way() -> None:
    def decisions() -> list[bool]:
        skips = SimilarityFilter(0.9, max_skip=10, seed=5)
        return [skips.skips(np.full((32, 32, 3), 100 + i % 12, np.uint8)) for i in range(100)]

    assert decisions() == decisions()
    assert any(decisions())
    assert not all(decisions())


def test_a_slow_fade_is_followed() -> None:
    """Each step is too small to see, but the reference is the last frame that was made."""
    skips = SimilarityFilter(0.98, max_skip=10**9)
    made = [level for level in range(100) if not skips.skips(np.full((32, 32, 3), level, np.uint8))]
    assert len(made) > 15


def test_a_threshold_of_one_skips_equal_frames_only() -> None:
    skips = SimilarityFilter(1.0, max_skip=10)
    assert not skips.skips(picture())
    assert skips.skips(picture())
    assert not skips.skips(picture(1))


def test_after_a_reset_nothing_is_skipped() -> None:
    skips = SimilarityFilter(0.98, max_skip=10)
    skips.skips(picture())
    skips.reset()
    assert not skips.skips(picture())
