"""The entry point: settings → engine → routes.

`python -m uvicorn app.main:app` and `python -m app.main` start the same service; the second one also tunes
the sockets (see `app.api.transport`). Importing this module does nothing: `app` is made when it is
first asked for, and the model is loaded when the server has started.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline

from app.api import http, stream, websocket
from app.api.head import HeadAsGet
from app.api.opening import Opening
from app.api.page import Page
from app.api.protocol import Planner
from app.api.service import Service
from app.api.transport import WebSocketProtocol, listen
from app.config.settings import ConfigurationError, Settings, load_settings
from app.core.engine import Engine
from app.core.messages import DeviceLostError, Mode, OutOfMemoryError, StartError
from app.utils.logger import configure_logging

log = logging.getLogger(__name__)

WEB = Path(__file__).resolve().parents[1] / "web"
CONFIGURATION_ERROR = 2
FAILURE = 1
SUCCESS = 0

Build = Callable[[Settings], tuple[Engine, Mapping[Mode, Planner]]]


def build(settings: Settings) -> tuple[Engine, Mapping[Mode, Planner]]:
    """The engine and the pipelines that the settings name; loads no model yet."""
    # While they are imported, they remark on what is not there and not needed.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("xformers").setLevel(logging.ERROR)
    # Imported here because torch and diffusers take seconds, and a mistake in the configuration none.
    from app.core.factory import create_engine
    from app.pipelines import load_pipelines

    try:
        pipelines = load_pipelines(settings.pipeline.name)
    except TypeError as error:
        raise StartError(str(error)) from error
    return create_engine(settings, pipelines), pipelines


def _ask_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Process:
    """How this process ends: asked to, as by its supervisor, or at once with a status."""

    ask_to_end: Callable[[], None] = _ask_to_end
    end_now: Callable[[int], None] = os._exit


def create_app(settings: Settings, *, build: Build = build, process: Process = Process()) -> FastAPI:
    """The application.

    Args:
        settings: the configuration.
        build: makes the engine and the pipelines.
        process: ends when the engine has failed.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = app.state.opening = Opening(settings)

        def fail(reason: str) -> None:
            log.critical("%s", reason)
            opening.fail(reason)
            process.ask_to_end()

        with _on_signals(opening.close):
            starting = asyncio.create_task(_open(opening, build, fail))
            try:
                yield
            finally:
                # Loading cannot be interrupted, and whoever asks for the end wants nothing of it any more. If
                # nobody asked, the server gave up by itself, for example since its port is taken.
                asked, loading = opening.closing, opening.state == "starting"
                opening.close()
                service, patience = opening.service, 0 if loading else settings.server.shutdown_timeout / 2
                stopped = service is None or await service.close(patience)
                starting.cancel()
                gc.unfreeze()
        if loading:
            log.info("ending before the model was loaded")
            logging.shutdown()
            process.end_now(SUCCESS if asked else FAILURE)
        # A thread that hangs in the device would keep the process; and a server that has stopped by
        # itself must not look as if somebody had stopped it.
        elif not stopped or opening.failure is not None:
            how = "stopped" if stopped else "the engine or a picture still busy"
            log.error("ending with status %d, %s", FAILURE, how)
            logging.shutdown()
            process.end_now(FAILURE)

    app = FastAPIOffline(
        redoc_url=None,
        title="StreamDiffusion Backend",
        description="Real-time image generation. The WebSocket is described in docs/protocol.md.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.server.allowed_origins,
        allow_methods=["GET"],
        allow_headers=["*"],
    )
    app.add_middleware(HeadAsGet)
    for module in (http, stream, websocket):
        app.include_router(module.router)
    if WEB.is_dir():
        app.mount("/", Page(directory=WEB, html=True), name="web")
    return app


async def _open(opening: Opening, build: Build, fail: Callable[[str], None]) -> None:
    try:
        # Beside the event loop, which answers meanwhile.
        engine, planners = await asyncio.to_thread(build, opening.settings)
        if opening.closing:
            return
        engine.on_failure = fail
        service = Service(opening.settings, engine, planners)
        opening.arrive(service)
        await service.open()
    except (StartError, DeviceLostError, OutOfMemoryError) as error:
        # What cannot be loaded says so in one sentence; anything else is a fault of ours, with a trace.
        fail(str(error))
    except Exception as error:
        log.exception("the start failed")
        fail(f"{type(error).__name__}: {error}")
    else:
        # What there is now stays. The garbage collector would now and then look through all of it, half a
        # million objects of libraries, and hold up every user for a tenth of a second and more.
        gc.collect()
        gc.freeze()
        log.info("ready")


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Act on the signals that end the process, before the server does.

    The server would first wait for the streams to end, and only then tell the application.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread, and so to somebody else
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        then = previous[signal.Signals(number)]
        if callable(then):
            then(number, frame)

    for number, then in previous.items():
        if callable(then):
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, then in previous.items():
            signal.signal(number, then)


def _configure() -> Settings:
    """The settings and the logging; a mistake ends the process with a sentence and status 2."""
    try:
        settings = load_settings()
    except ConfigurationError as error:
        _exit(str(error), CONFIGURATION_ERROR)
    configure_logging(settings.server.log_level, settings.server.log_format)
    return settings


def _exit(words: str, status: int) -> NoReturn:
    sys.stderr.write(f"{words}\n")
    raise SystemExit(status)


@cache
def _default_app() -> FastAPI:
    return create_app(_configure())


def __getattr__(name: str) -> Any:
    if name == "app":
        return _default_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve an application until a signal ends it."""
    server = settings.server
    try:
        listener = listen(server.host, server.port)
    except OSError as error:
        _exit(f"cannot listen on {server.host}:{server.port}: {error.strerror}", FAILURE)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app,
        ws=WebSocketProtocol,
        ws_max_size=server.max_message_bytes,
        log_config=None,
        access_log=server.log_level == "debug",
        timeout_graceful_shutdown=max(1, int(server.shutdown_timeout / 2)),
    )
    log.info("listening on %s", addresses(host, port))
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        # It has shut down. Ended by the signal itself, as by SIGTERM, there is no trace, and nobody waits for
        # libraries to be torn down.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def addresses(host: str, port: int) -> str:
    """Where the server can be found that listens on this. A page from 0.0.0.0 would get no camera."""
    if host in {"0.0.0.0", "::"}:
        return f"http://localhost:{port} and every other address of this machine"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m app.main`. It has no options, and says so to who tries one."""
    argparse.ArgumentParser(
        prog="python -m app.main",
        description="Start the server.",
        epilog="Port, model and all else: docs/configuration.md, such as STREAMDIFFUSION_SERVER__PORT=8080",
    ).parse_args(arguments)
    settings = _configure()
    serve(create_app(settings), settings)


if __name__ == "__main__":
    main()
