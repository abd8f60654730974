"""A CLIP tokenizer of our own: byte pair encoding learned from the words that training uses."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def _byte_letters() -> list[str]:
    """The printable stand-ins for the 256 bytes, in the order of GPT-2's byte level coding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable]
    letters += [chr(256 + index) for index in range(256 - len(printable))]
    return letters


def learn_merges(words: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Byte pair merges (Sennrich et al. 2016), most frequent pair first, until every word is one token."""
    counts = Counter(words)
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            pieces[word] = joined
    return merges


def build_tokenizer(words: Iterable[str], merges_limit: int = 2500) -> CLIPTokenizer:
    """The tokenizer, the same on every call with the same words."""
    merges = learn_merges(words, merges_limit)
    letters = _byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    pairs: Any = merges  # annotated as text, but pairs are what its own loader passes
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=pairs,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAX_TOKENS,
    )


def save_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`, which readers of the older tokenizer format want beside
    `tokenizer.json`.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
