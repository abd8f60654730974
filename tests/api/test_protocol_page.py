"""docs/protocol.md says what the code does, in both languages."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from app.api.results import HEADER, REPEATED
from app.api.websocket import ENDINGS, FULL, Options, Status
from tests.api.conftest import Received

DOCS = Path(__file__).resolve().parents[2] / "docs"
TYPES = {"u8": "B", "u16": "H", "u32": "I", "f32": "f", "f64": "d"}


@pytest.fixture(params=["protocol.md", "zh/protocol.md"])
def page(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_header_is_where_the_page_says(page: str) -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| `(\w+)` \|", page, flags=re.MULTILINE)
    offset = 0
    for expected, kind, _ in rows:
        assert int(expected) == offset
        offset += struct.calcsize("<" + TYPES[kind])
    assert offset == HEADER.size == 48
    assert "<" + "".join(TYPES[kind] for _, kind, _ in rows) == HEADER.format
    names = [name.removeprefix("frame_") for _, _, name in rows]
    assert names == list(Received._fields[:-1])
    assert REPEATED == 1


def test_every_code_is_explained(page: str) -> None:
    explained = {int(code) for code in re.findall(r"^\| (\d{4}) \|", page, flags=re.MULTILINE)}
    assert explained == {FULL.code, 1008, *(farewell.code for farewell in ENDINGS.values())}


def test_every_status_is_explained(page: str) -> None:
    explained = set(re.findall(r'^\| `\{"status": "(\w+)"', page, flags=re.MULTILINE))
    assert explained == set(Status.__args__)  # type: ignore[attr-defined]


def test_every_query_is_explained(page: str) -> None:
    explained = set(re.findall(r"^\| `(\w+)` \| .+ \| .+ \| .+ \|$", page, flags=re.MULTILINE))
    assert set(Options.model_fields) - {"user"} <= explained
