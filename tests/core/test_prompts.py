"""The cache of embeddings: the least recently used leaves, what is waited for stays."""

from __future__ import annotations

from app.core.prompts import PromptCache
from tests.core.fakes import frame


def known(cache: PromptCache) -> list[str]:
    return list(cache._embeddings)


def test_a_frame_needs_all_its_texts() -> None:
    cache, one = PromptCache(4), frame(prompt="cat", negative="dog")
    assert cache.lookup(one) is None
    assert cache.first_missing([one]) == "cat"
    cache.store("cat", 1, [one])
    assert cache.lookup(one) is None
    assert cache.first_missing([one]) == "dog"
    cache.store("dog", 2, [one])
    assert cache.lookup(one) == (1, 2)
    assert cache.first_missing([one]) is None


def test_the_first_that_waits_is_first() -> None:
    cache = PromptCache(4)
    assert cache.first_missing([]) is None
    cache.store("a", 1, [])
    assert cache.first_missing([frame(prompt="a"), frame(prompt="b"), frame(prompt="c")]) == "b"


def test_the_least_recently_used_leaves() -> None:
    cache = PromptCache(2)
    cache.store("a", 1, [])
    cache.store("b", 2, [])
    assert cache.lookup(frame(prompt="a")) == (1,)
    cache.store("c", 3, [])
    assert known(cache) == ["a", "c"]


def test_what_is_waited_for_stays() -> None:
    cache = PromptCache(1)
    frames = [frame(prompt="a", negative="b"), frame(prompt="c")]
    for text in "abc":
        cache.store(text, text.upper(), frames)
    assert [cache.lookup(one) for one in frames] == [("A", "B"), ("C",)]
    cache.store("d", "D", frames[1:])
    assert known(cache) == ["c"]
    cache.store("e", "E", [])
    assert known(cache) == ["e"]


def test_a_text_is_stored_anew() -> None:
    cache = PromptCache(2)
    cache.store("a", 1, [])
    cache.store("b", 2, [])
    cache.store("a", 3, [])
    cache.store("c", 4, [])
    assert known(cache) == ["a", "c"]
    assert cache.lookup(frame(prompt="a")) == (3,)
