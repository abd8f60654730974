"""Device tables: the least recently used row makes room, and no row is ever two keys'."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.core.pool import LruTable, RowPool

CPU = torch.device("cpu")


def table(rows: int) -> LruTable:
    return LruTable(rows, (2,), torch.float32, CPU)


def rows(table: LruTable, *keys: int) -> list[int]:
    return table.rows([(key, partial(torch.full, (2,), float(key))) for key in keys])


def values(table: LruTable, *keys: int) -> list[float]:
    return [float(table.data[row, 0]) for row in rows(table, *keys)]


def test_a_value_is_made_once() -> None:
    made: list[str] = []

    def make(key: str) -> torch.Tensor:
        made.append(key)
        return torch.zeros(2)

    wanted = [(key, partial(make, key)) for key in "aba"]
    both = table(4)
    first = both.rows(wanted)
    assert first == both.rows(wanted)
    assert first[0] == first[2] != first[1]
    assert made == ["a", "b"]


def test_the_least_recently_used_row_is_overwritten() -> None:
    small = table(3)
    one, two, _ = rows(small, 1, 2, 3)
    assert rows(small, 1) == [one]
    assert rows(small, 4) == [two]
    assert values(small, 1, 3, 4) == [1, 3, 4]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=40))
def test_each_key_has_its_own_value(calls: list[list[int]]) -> None:
    small = table(4)
    for keys in calls:
        assert values(small, *keys) == [float(key) for key in keys]


def test_a_value_that_cannot_be_made_spoils_nothing() -> None:
    """Also when the table is full, and when the value turns out not to fit a row."""

    def fail() -> torch.Tensor:
        raise RuntimeError("no")

    small = table(2)
    assert values(small, 1, 2) == [1, 2]
    with pytest.raises(RuntimeError, match="no"):
        small.rows([(3, fail)])
    for _ in range(3):
        with pytest.raises(RuntimeError, match="size"):
            small.rows([(3, lambda: torch.zeros(5))])
        assert values(small, 2, 4) == [2, 4]
        assert values(small, 2, 5) == [2, 5]


def test_the_scratch_row_is_nobodys() -> None:
    pool = RowPool(2, (4, 8, 8), CPU)
    assert pool.latents.shape == pool.residual.shape == (3, 4, 8, 8)
    assert pool.scratch == 2
    pool.write(torch.tensor([1, 2]), torch.ones(2, 4, 8, 8), torch.full((2, 4, 8, 8), 2.0))
    assert pool.latents.flatten(1).amax(1).tolist() == [0, 1, 1]
    assert pool.residual.flatten(1).amax(1).tolist() == [0, 2, 2]
