"""The layers: who may import whom, read from the source without importing anything.

app.main → app.api → app.core.session, app.core.engine → app.core.scheduler → app.core.messages
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each part of the application may import of it; the longest matching name counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "app.utils": ("app.utils",),
    "app.config": ("app.config", "app.utils"),
    "app.core.messages": (),
    "app.core.scheduler": ("app.core.messages",),
    "app.core.session": ("app.core.messages", "app.utils"),
    # The engine gets its runner handed in, so that it runs without torch and with a played device.
    "app.core.engine": ("app.core.messages", "app.core.prompts", "app.core.scheduler", "app.utils"),
    "app.core.dependencies": (
        "app.core.messages",
        "app.models.loader",
        "app.accelerations",
        "app.config",
        "app.utils",
    ),
    "app.core": ("app.core", "app.models", "app.pipelines", "app.accelerations", "app.config", "app.utils"),
    "app.models": ("app.models", "app.core.denoise", "app.core.messages", "app.config", "app.utils"),
    "app.pipelines": (
        "app.pipelines",
        "app.models",
        "app.core.denoise",
        "app.core.messages",
        "app.config",
        "app.utils",
    ),
    "app.accelerations": (
        "app.accelerations",
        "app.models",
        "app.core.denoise",
        "app.core.messages",
        "app.config",
        "app.utils",
    ),
    "app.api": (
        "app.api",
        "app.core.engine",
        "app.core.messages",
        "app.core.session",
        "app.config",
        "app.utils",
    ),
    "app.main": ("app",),
    "app": (),
}
NEVER_BELOW_THE_API = ("app.api", "app.main")

# Where tensors may be known. The reports on hardware import torch too, but only when they are called.
TORCH = (
    "app.core.factory",
    "app.core.denoise",
    "app.core.pool",
    "app.core.runner",
    "app.core.transfer",
    "app.models",
    "app.pipelines",
    "app.accelerations",
)
LAZY_TORCH = ("app.core.dependencies", "app.utils.performance")
TENSOR_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors.torch")


def modules() -> list[str]:
    paths = sorted((ROOT / "app").rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports(module: str, *, when_loaded: bool = False) -> Iterator[str]:
    """Yield the full names a module imports: anywhere in it, or only what runs when it is loaded."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending.extend(ast.iter_child_nodes(node))


def allowed(module: str) -> tuple[str, ...]:
    return MAY_IMPORT[max((name for name in MAY_IMPORT if within(module, (name,))), key=len)]


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module: str) -> None:
    ours = {name for name in imports(module) if within(name, ("app",))}
    wrong = {name for name in ours if not within(name, (*allowed(module), module))}
    if not within(module, NEVER_BELOW_THE_API):
        wrong |= {name for name in ours if within(name, NEVER_BELOW_THE_API)}
    assert not wrong


@pytest.mark.parametrize("module", [name for name in modules() if not within(name, TORCH)])
def test_tensors_stay_where_they_belong(module: str) -> None:
    lazy = within(module, LAZY_TORCH)
    assert not {name for name in imports(module, when_loaded=lazy) if within(name, TENSOR_LIBRARIES)}


def test_imports_are_read() -> None:
    found = set(imports("app.utils.performance"))
    assert {"gc", "psutil", "torch", "dataclasses.dataclass"} <= found
    assert "torch" not in set(imports("app.utils.performance", when_loaded=True))
    assert allowed("app.core.engine") != allowed("app.core.runner")
