"""What the server says, which is English, in the language of the page."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
from playwright.sync_api import WebSocketRoute, expect
from pydantic import BaseModel, Field

from tests.api.conftest import MakeServer
from tests.web.conftest import OpenStudio
from tests.web.studio import Studio
from tests.web.test_states import WITHOUT_CAMERA

CHINESE = {"script": WITHOUT_CAMERA, "locale": "zh-CN"}


class Params(BaseModel):
    prompt: str = ""
    note: str = Field("", max_length=3)
    num_inference_steps: int = 1
    seed: int = 0
    guidance_scale: float = 1.0


def closed_with(studio: Studio, words: str, code: int) -> None:
    """Start before a server that says this and closes the connection."""

    def say(socket: WebSocketRoute) -> None:
        socket.send(json.dumps({"status": "error", "message": words}))
        socket.close(code=code)

    studio.page.route_web_socket("**/api/ws/*", say)
    studio.page.click("#start")


def test_frames_that_are_refused(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server(server={"max_prompt_length": 30})
    server.image.Params = Params
    studio = open_studio(server.http, **CHINESE)
    studio.start()
    toast = studio.page.locator("#toast")
    studio.page.fill("#prompt", 31 * "x")
    expect(toast).to_have_text("服务器未接受“提示词”：共 31 个字符，最多允许 30 个")
    studio.page.fill("#prompt", "nan")
    expect(toast).to_have_text("该帧生成失败：生成的画面中有无效数值")
    studio.page.click("#language")
    expect(toast).to_have_text("the frame could not be made: the picture came out non-finite")
    studio.page.click("#language")
    studio.page.fill("#prompt", "all is well")
    studio.page.fill("input[name=note]", "long")
    expect(toast).to_have_text("服务器未接受“note”：最多 3 个字符，收到的是 'long'")


def test_a_pipeline_that_refuses_in_words_of_its_own(
    make_server: MakeServer, open_studio: OpenStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    studio = open_studio(server.http, **CHINESE)
    studio.start()
    toast = studio.page.locator("#toast")
    for error, shown in (
        (ValueError("not today"), "not today"),
        (RuntimeError("a mistake"), "服务器未接受这些参数：RuntimeError: a mistake"),
    ):
        monkeypatch.setattr(server.image, "plan", Mock(side_effect=error))
        studio.page.fill("#prompt", str(error))
        expect(toast).to_have_text(shown)


def test_a_server_that_shuts_down(make_server: MakeServer, open_studio: OpenStudio) -> None:
    server = make_server()
    studio = open_studio(server.http, **CHINESE)
    studio.start()
    server.loop.call_soon_threadsafe(server.service.begin_shutdown)
    toast = studio.page.locator("#toast")
    expect(toast).to_have_text("连接已断开，正在重新连接… — 服务器正在关闭")
    server.stop()
    server.join()
    for _ in range(2):  # the second attempt to connect again means that the first one failed
        with studio.page.expect_websocket():
            pass
    expect(toast).to_have_text("连接已断开，正在重新连接… — 服务器正在关闭")


def test_a_server_that_fails(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(make_server().http, **CHINESE)
    studio.start()
    studio.page.fill("#prompt", "lost")
    expect(studio.page.locator("#toast")).to_have_text(
        "连接已断开，正在重新连接… — 服务器出现故障：DeviceLostError: the device fell off the bus"
    )


def test_a_user_that_is_refused(make_server: MakeServer, open_studio: OpenStudio) -> None:
    studio = open_studio(f"{make_server().http}/?user=a%20b", **CHINESE)
    studio.page.click("#start")
    notice = studio.page.locator("#notice p")
    expect(notice).to_have_text("用户名须为 1 到 128 个字母、数字或 - . _ ~，“a b”不符合。")
    studio.page.click("#language")
    expect(notice).to_have_text("userId: must be 1 to 128 letters, digits and - . _ ~, not 'a b'")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("origin: pages of http://x may not use this server", "服务器不接受来自 {address} 的页面。"),
        ("There is no WebSocket at /api", "There is no WebSocket at /api"),
        (
            "mode: should be 'image' or 'video', not 'x'",
            "服务器未接受“mode”：只能是 'image' or 'video'，收到的是 'x'",
        ),
    ],
    ids=["a field with a sentence of its own", "no field", "any other field"],
)
def test_an_address_that_is_refused(
    make_server: MakeServer, open_studio: OpenStudio, said: str, shown: str
) -> None:
    server = make_server()
    studio = open_studio(server.http, **CHINESE)
    closed_with(studio, said, 1008)
    expect(studio.page.locator("#notice p")).to_have_text(shown.format(address=server.http))
