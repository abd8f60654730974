"""The JavaScript client by itself, with a played connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.web.server import ROOT
from tests.web.test_examples import served

PLAYED = """
    window.sockets = [];
    window.WebSocket = class {
        constructor(address) { this.address = address; sockets.push(this); }
        close() { this.closed = true; }
    };
    window.create = async (server) => {
        const { StreamClient } = await import("/index.js");
        return new StreamClient({ server, capture: async () => ({ picture: null, time: 0 }) });
    };
"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with served(ROOT / "web" / "client") as origin, browser.new_context() as context:
        page = context.new_page()
        page.add_init_script(PLAYED)
        page.goto(f"{origin}/index.js")
        yield page


@pytest.mark.parametrize("state", ["connecting", "live", "reconnecting"])
def test_who_stops_upon_a_state_is_not_connected_again(page: Page, state: str) -> None:
    script = """async (state) => {
        window.setTimeout = (connect) => { window.later = connect; return 1; };
        window.clearTimeout = () => { window.later = null; };
        const client = await create("http://localhost:8000");
        client.addEventListener("state", ({ detail }) => detail.state === state && client.stop());
        client.start();
        sockets[0].onmessage({ data: '{"status": "connected"}' });
        sockets[0].onclose({ code: 1006 });
        window.later?.();
        return [client.state, sockets.length];
    }"""
    assert page.evaluate(script, state) == ["stopped", 1]


def test_an_address_that_is_none_leaves_the_client_stopped(page: Page) -> None:
    script = """async () => {
        const client = await create("localhost:8000");
        try { client.start(); } catch (error) { return [error.name, client.state]; }
    }"""
    assert page.evaluate(script) == ["TypeError", "stopped"]


@pytest.mark.parametrize(
    "unsayable", ["10n", "(() => { const ring = {}; ring.ring = ring; return ring; })()"]
)
def test_parameters_that_json_does_not_know_leave_those_before(page: Page, unsayable: str) -> None:
    script = """async (unsayable) => {
        const client = await create("http://localhost:8000");
        const problems = [];
        client.addEventListener("problem", ({ detail }) => problems.push(detail.message));
        client.start();
        const [socket] = sockets;
        const said = [];
        socket.readyState = WebSocket.OPEN;
        socket.send = (message) => typeof message === "string" && said.push(JSON.parse(message));
        const nextFrame = async () => {
            socket.onmessage({ data: '{"status": "send_frame"}' });
            await new Promise((done) => setTimeout(done));
        };
        client.parameters.seed = 1;
        await nextFrame();
        client.parameters.seed = eval(unsayable);
        await nextFrame();
        client.parameters.seed = 2;
        await nextFrame();
        return [said.map(({ status, seed }) => status ?? seed), problems];
    }"""
    said, problems = page.evaluate(script, unsayable)
    assert said == ["next_frame", 1, "next_frame", 1, "next_frame", 2]
    assert len(problems) == 1
    assert problems[0].startswith("parameters: ")
