"""A server with a played device as a process: `python -m tests.api.serve PORT tuned|plain|loading`."""

from __future__ import annotations

import sys
import time

import uvicorn

from app import main
from app.config.schema import Settings
from tests.api.conftest import SIZE
from tests.fakes import FakePlanner, FakeRunner, create_engine


def load() -> FakeRunner:
    """Takes longer than any test."""
    time.sleep(300)
    return FakeRunner()


def serve(port: int, how: str) -> None:
    """Start as one of the two commands does, with another engine; ``loading`` never gets ready."""
    settings = Settings.model_validate(
        {"pipeline": {"width": SIZE, "height": SIZE}, "server": {"host": "127.0.0.1", "port": port}}
    )
    app = main.create_app(
        settings,
        build=lambda _settings: (
            create_engine(lambda _report: load() if how == "loading" else FakeRunner()),
            {"image": FakePlanner("image"), "video": FakePlanner("video")},
        ),
    )
    if how == "plain":
        uvicorn.run(app, host="127.0.0.1", port=port)
    else:
        main.serve(app, settings)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
