"""The page's files, without a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import pytest
from pydantic import BaseModel, Field

from app.api.opening import Opening
from app.api.protocol import Parameters
from app.api.websocket import ENDINGS, FAULT
from app.config.schema import Settings
from app.core.engine import OUT_OF_MEMORY
from app.core.session import Ending
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


class Limited(BaseModel):
    least: int = Field(1, ge=1)
    most: int = Field(1, le=1)
    above: float = Field(1, gt=0)
    below: float = Field(1, lt=2)
    multiple: int = Field(8, multiple_of=8)
    number: float = 1
    flag: bool = False
    choice: Literal["a", "b"] = "a"
    short: str = Field("", max_length=1)
    long: str = Field("ab", min_length=2)


REFUSED: list[tuple[str, object]] = [
    *(("least", 0), ("most", 2), ("above", 0), ("below", 2), ("multiple", 9), ("choice", "c")),
    *(("most", "x"), ("most", 0.5), ("number", "x"), ("long", 1), ("flag", 1)),
    *(("short", "ab"), ("long", ""), ("long", 9 * "a")),
]


def refusal(name: str, value: object) -> str:
    """What the server says to a parameter, without its name."""
    with pytest.raises(ValueError, match=f"{name}: ") as refused:
        Parameters(Mock(Params=Limited), max_length=8).read({name: value}, "")
    return str(refused.value).partition(": ")[2]


def test_chinese_has_every_step_of_the_start_and_no_sentence_that_the_server_does_not_say() -> None:
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "app").rglob("*.py"))
    steps = ["starting", *re.findall(r'\breport\(\s*f?"(.+?)"\s*\)', sources), Opening(Settings()).progress]
    parts = re.findall(r'"(the (?:UNet|VAE\'s \w+)|(?:one|several) pictures?)"', sources)
    failures = [OUT_OF_MEMORY, *re.findall(r'"(the picture came .+?)"', sources)]
    endings = [FAULT.message, ENDINGS[Ending.FAILED].because("x").message]
    refusals = [refusal(name, value) for name, value in REFUSED]
    known = re.findall(
        r'^    "?([^"\n]+)"?:(?: |$)', (WEB / "js/locales/zh.js").read_text("utf-8"), re.MULTILINE
    )
    patterns = {key: re.compile(re.sub(r"\\{\w+\\}", ".*", re.escape(key))) for key in known}
    found = set()
    for sentence in [*steps, *parts, *failures, *endings, *refusals]:
        fitting = [key for key, pattern in patterns.items() if pattern.fullmatch(sentence)]
        assert fitting, f"{sentence!r} has no Chinese words"
        found.add(fitting[0])
    assert found == set(known)


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
