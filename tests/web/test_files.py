"""The page's files, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.web.server import ROOT

WEB = ROOT / "web"
SCRIPTS = sorted(WEB.rglob("*.js"))
FILES = sorted(path for path in WEB.rglob("*") if path.suffix in {".js", ".css", ".html", ".svg"})
KEY = re.compile(r'^  "?([\w.-]+)"?:', re.MULTILINE)


def keys(language: str) -> list[str]:
    return KEY.findall((WEB / "js/locales" / f"{language}.js").read_text("utf-8"))


def used() -> tuple[set[str], set[str]]:
    """The keys that are named in full, and the beginnings of those that are put together."""
    named, begun = set(), set()
    page = (WEB / "index.html").read_text("utf-8")
    named |= set(re.findall(r'data-i18n(?:-label|-placeholder)?="([^"]+)"', page))
    for path in SCRIPTS:
        text = path.read_text("utf-8")
        named |= set(re.findall(r'\bt\("([^"]+)"', text))
        begun |= set(re.findall(r"\bt(?:ranslated)?\(`([^`$]+)\$", text))
    return named, begun


def test_every_word_is_there_and_every_one_is_used() -> None:
    named, begun = used()
    words = keys("en")
    assert len(words) == len(set(words))
    assert named <= set(words)
    indirect = re.findall(
        r'"((?:figures|drawing|start|stop)[.\w]*)"', "".join(p.read_text("utf-8") for p in SCRIPTS)
    )
    for word in words:
        assert word in named or word in indirect or any(map(word.startswith, begun)), f"{word} is not used"


def test_chinese_has_the_same_words() -> None:
    # The server speaks English: names of parameters, and what it has to say.
    assert [key for key in keys("zh") if not key.startswith(("parameter.", "server."))] == keys("en")


def test_every_example_has_a_name() -> None:
    examples = re.findall(r'id: "([\w-]+)"', (WEB / "js/examples.js").read_text("utf-8"))
    assert examples
    assert {f"example.{name}" for name in examples} == {
        key for key in keys("en") if key.startswith("example.")
    }


def test_every_icon_is_there_and_every_one_is_used() -> None:
    there = re.findall(r'<symbol id="(\w+)"', (WEB / "icons.svg").read_text("utf-8"))
    text = "".join(path.read_text("utf-8") for path in FILES if path.name != "icons.svg")
    named = set(re.findall(r'icons\.svg#(\w+)|(?:icon|toolButton)\("(\w+)"', text))
    assert {name for pair in named for name in pair if name} <= set(there)
    for name in there:
        assert f"#{name}" in text or f'"{name}"' in text, f"{name} is not used"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(WEB)))
def test_files_are_small_and_name_no_foreign_host(path: Path) -> None:
    text = path.read_text("utf-8")
    hosts = set(re.findall(r"https?://([\w.-]+)", text))
    assert hosts <= {"www.w3.org", "localhost"}
    assert len(text.splitlines()) <= 450
