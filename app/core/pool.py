"""What the device keeps between ticks: the rows in flight, and tables of noise maps and embeddings.

All memory is allocated once. It does not know who the rows belong to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class RowPool:
    """The state of each row in flight: latents and residual noise, (slots + 1, C, h, w), float32. The last
    slot belongs to nobody: padding reads and writes it.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self.scratch = slots
        self.latents = torch.zeros(slots + 1, *shape, device=device)
        self.residual = torch.zeros_like(self.latents)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and residual noise of these slots, (B,)."""
        # One kernel each; plain indexing takes twice as long.
        return self.latents.index_select(0, slots), self.residual.index_select(0, slots)

    def write(self, slots: Tensor, latents: Tensor, residual: Tensor) -> None:
        """Replace the state of these slots, (B,); the other two are (B, C, h, w), float32."""
        self.latents.index_copy_(0, slots, latents)
        self.residual.index_copy_(0, slots, residual)


class LruTable:
    """Device rows by key; when it is full the least recently used rows are overwritten.

    Args:
        rows: how many there are; a single call may not ask for more.
        shape: the shape of one row.
    """

    def __init__(self, rows: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.data = torch.zeros(rows, *shape, dtype=dtype, device=device)
        self._rows: OrderedDict[Hashable, int] = OrderedDict()
        self._free = list(reversed(range(rows)))

    def rows(self, wanted: Sequence[tuple[Hashable, Callable[[], Tensor]]]) -> list[int]:
        """The row of each key; what is not there yet is made, on the CPU, and copied."""
        for key, _ in wanted:
            if key in self._rows:
                self._rows.move_to_end(key)
        return [self._row(key, make) for key, make in wanted]

    def _row(self, key: Hashable, make: Callable[[], Tensor]) -> int:
        row = self._rows.get(key)
        if row is None:
            value = make()
            if not self._free:
                self._free.append(self._rows.popitem(last=False)[1])
            row = self._free[-1]
            self.data[row].copy_(value, non_blocking=True)  # may raise: only then the row is the key's
            self._rows[key] = self._free.pop()
        return row
