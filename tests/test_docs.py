"""The documentation says what the code does."""

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.api.metrics import Metrics
from app.config.settings import Settings, configuration_keys, load_settings, variable_name
from app.core.session import Registry
from benchmarks.report import outdated
from tests.fakes import FakeRunner, create_engine

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = ROOT / "docs/configuration.md"
CHINESE = ROOT / "docs/zh/configuration.md"
TRANSLATED = {
    ROOT / "README.md": ROOT / "README.zh-CN.md",
    ROOT / "examples/README.md": ROOT / "examples/README.zh-CN.md",
    **{
        page: page.parent / "zh" / page.name
        for page in ROOT.glob("docs/*.md")
        if page.name != "performance-log.md"
    },
}


def rows(path: Path) -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of every key that a configuration page has a row for."""
    found = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(\w+)`", line):
            section = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| `(.+?)` \| (.+) \|", line):
            found[f"{section}.{row[1]}"] = (row[2], row[3])
    return found


def in_code() -> dict[str, tuple[str, str]]:
    defaults = Settings().model_dump(mode="json")
    expected = {}
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        for key, value in section.model_fields.items():
            expected[f"{name}.{key}"] = (json.dumps(defaults[name][key]), value.description or "")
    return expected


def test_every_key_is_described_as_in_the_code() -> None:
    assert rows(ENGLISH) == in_code()


def test_chinese_page_has_the_same_keys_and_defaults() -> None:
    chinese = rows(CHINESE)
    assert {key: default for key, (default, _) in chinese.items()} == {
        key: default for key, (default, _) in in_code().items()
    }
    assert all(re.search(r"[\u4e00-\u9fff]", meaning) for _, meaning in chinese.values())


def test_example_of_dotenv_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    uncommented = re.sub(r"^# (?=STREAMDIFFUSION_\w+=)", "", text, flags=re.MULTILINE)
    named = re.findall(r"^(\w+)=(.+)$", uncommented, flags=re.MULTILINE)
    assert {name for name, _ in named} <= set(map(variable_name, configuration_keys()))
    (tmp_path / ".env").write_text(uncommented)
    monkeypatch.chdir(tmp_path)
    loaded = load_settings().model_dump(mode="json")
    for name, value in named:
        section, key = name.removeprefix("STREAMDIFFUSION_").lower().split("__")
        assert str(loaded[section][key]) == value


def shape(path: Path) -> tuple[list[str], list[str]]:
    """Return a page's headings, tables and pictures, and its code without comments and alignment."""
    parts = re.split(r"^(```.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    outline = re.findall(r"^(#+ |<!-- .+|!\[)", "".join(parts[::2]), flags=re.MULTILINE)
    return outline, [" ".join(re.sub(r" # .*|─", " ", block).split()) for block in parts[1::2]]


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: str(page.relative_to(ROOT)))
def test_chinese_page_has_the_same_headings_and_code(page: Path) -> None:
    outline, blocks = shape(page)
    chinese_outline, chinese_blocks = shape(TRANSLATED[page])
    assert chinese_outline == outline
    assert len(chinese_blocks) == len(blocks)
    for block, chinese_block in zip(blocks, chinese_blocks, strict=True):
        # What is in Chinese may stand for any words; all else is the same.
        assert re.fullmatch(re.sub(r"[\u2e80-\uffef]+", ".+", re.escape(chinese_block)), block)


def test_heads_of_the_chinese_tables_are_in_chinese() -> None:
    page = (ROOT / "docs/zh/performance.md").read_text(encoding="utf-8")
    words = {
        word
        for heads in re.findall(r"begin: .+\n(\| .+)\n\| ---", page)
        for word in re.findall(r"[A-Za-z]{2,}", heads)
    }
    assert words == {"ms", "GiB", "TFLOP", "CPU", "GPU", "queue", "cuDNN", "flash", "efficient"}


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert re.match(r"\w+:", target) or (page.parent / target).exists(), f"nothing at {target}"


def exported() -> dict[str, str]:
    """The type of every metric, by the name that Prometheus shows."""
    engine = create_engine(lambda _report: FakeRunner())
    families = Metrics(Registry(engine), engine).collect()
    return {family.name + "_total" * (family.type == "counter"): family.type for family in families}


@pytest.mark.parametrize("page", ["docs/deployment.md", "docs/zh/deployment.md"])
def test_every_metric_is_described(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert (
        dict(re.findall(r"^\| `(streamdiffusion_\w+)` \| (\w+) \| .+ \|$", text, re.MULTILINE)) == exported()
    )


def test_alerts_know_the_metrics() -> None:
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"streamdiffusion_\w+", rules))
    known = {name + "_bucket" * (kind == "histogram") for name, kind in exported().items()}
    assert named
    assert named <= known


def test_tables_are_made_of_the_results() -> None:
    assert not list(outdated()), "run python -m benchmarks.report"
