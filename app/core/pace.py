"""When to launch the next batch: so late that the newest frames are in it, and early enough that the device
does not run out of work meanwhile.

Pure arithmetic on times; it knows neither devices nor frames.
"""

from __future__ import annotations

from collections import defaultdict, deque

MARGIN = 3e-4
"""Seconds by which a launch may take longer than the one before."""


class Pace:
    """Learns what forward passes and launches take. All times are seconds of one clock."""

    def __init__(self) -> None:
        # The last two of each batch size, of which the smaller counts: after one that was held up by
        # something else nobody shall wait as long again, and being early only costs a few newest frames.
        self._forward: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=2))
        self._launch = 0.0
        self._free_at = 0.0

    def launched(self, seconds: float) -> None:
        """Note what a launch took the host."""
        self._launch = seconds

    def ended(self, batch: int, seconds: float, at: float) -> None:
        """Note that a forward pass ended, and what it took the device."""
        self._forward[batch].append(seconds)
        self._free_at = at

    def due(self, batch: int, launched_at: float) -> float | None:
        """When to launch what follows a batch that was launched then, the forward pass before it having
        ended; None if this batch size never ran.
        """
        if not self._forward[batch]:
            return None
        return max(launched_at, self._free_at) + min(self._forward[batch]) - self._launch - MARGIN
