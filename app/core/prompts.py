"""The embeddings of the texts in use.

An LRU cache; whoever holds the lock of the engine may use it. It does not know what an embedding is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from app.core.messages import FrameIn


class PromptCache:
    """Embeddings by text; the least recently used ones beyond ``capacity`` leave, but never one that a
    waiting frame needs: many different prompts would take turns in pushing each other out.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.negative = True
        """Whether a frame needs its negative prompt; the runner knows."""
        self._embeddings: OrderedDict[str, Any] = OrderedDict()

    def store(self, text: str, embedding: Any, waiting: Iterable[FrameIn]) -> None:
        """Keep a text's embedding, and those of the frames that wait."""
        self._embeddings[text] = embedding
        self._embeddings.move_to_end(text)
        needed = {text for frame in waiting for text in self.texts(frame)}
        old = [text for text in self._embeddings if text not in needed]
        for text in old[: max(0, len(self._embeddings) - self._capacity)]:
            del self._embeddings[text]

    def texts(self, frame: FrameIn) -> tuple[str, ...]:
        """The texts that a frame needs the embeddings of."""
        return frame.plan.texts if self.negative else (frame.plan.prompt,)

    def lookup(self, frame: FrameIn) -> tuple[Any, ...] | None:
        """The embeddings of all texts of a frame, or None if one is missing."""
        texts = self.texts(frame)
        if any(text not in self._embeddings for text in texts):
            return None
        for text in texts:
            self._embeddings.move_to_end(text)
        return tuple(self._embeddings[text] for text in texts)

    def first_missing(self, frames: Iterable[FrameIn]) -> str | None:
        """The first text of these frames that has no embedding yet."""
        texts = (text for frame in frames for text in self.texts(frame))
        return next((text for text in texts if text not in self._embeddings), None)
