"""What bad input gets: an error that names the field, a new credit, and the connection lives on."""

from __future__ import annotations

import io
import itertools
import threading
import time
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image as Pillow
from websockets.asyncio.client import connect

from app.api.websocket import PAUSE
from tests.api.conftest import SIZE, Client, MakeServer, Server, picture, until
from tests.utils.test_image import chunked_png, huge_png, oriented, saved, scene, with_scans

NEXT = {"status": "next_frame"}
RGB = Pillow.fromarray(scene(SIZE, SIZE))
BLACK = Pillow.new("RGB", (SIZE, SIZE))

PICTURES: dict[str, tuple[bytes, str]] = {
    "truncated": (picture()[:-60], "truncated"),
    "no picture": (b"I am no picture at all", "must be a JPEG, PNG or WebP"),
    "gif": (saved(RGB, "GIF"), "not a GIF"),
    "animated": (saved(RGB, "PNG", save_all=True, append_images=[BLACK]), "animated"),
    "cmyk": (saved(RGB.convert("CMYK"), "JPEG"), "CMYK"),
    "16 bits": (saved(Pillow.new("I;16", (SIZE, SIZE)), "PNG"), "16 bits"),
    "rotated": (saved(RGB, "JPEG", exif=oriented(6)), "rotated"),
    "1x1": (saved(scene(1, 1), "PNG"), "too small: 1×1"),
    "thousands of scans": (with_scans(5000, progressive=True), "scans; at most 100"),
    "thousands of chunks": (chunked_png(20_000), "more than 10000 chunks"),
    "20000x20000": (huge_png(20_000), "too large: 20000×20000"),
}


async def still_alive(client: Client) -> None:
    """A good frame gets its picture."""
    await client.send(picture(100), prompt="alive")
    await client.expect("send_frame")
    assert await client.result()


@pytest.mark.parametrize("kind", PICTURES)
async def test_bad_picture(server: Server, kind: str) -> None:
    data, words = PICTURES[kind]
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(data)
        await client.expect("error", words)
        await client.expect("send_frame")
        await still_alive(client)
    assert server.service.registry.counters.errors == 1


async def test_a_decoder_that_fails_costs_the_frame_and_not_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one came meanwhile, without a credit."""
    codec, begun, go_on = server.service.codec, threading.Event(), threading.Event()
    decode = codec._decode

    def fail_once(data: bytes) -> Any:
        monkeypatch.setattr(codec, "_decode", decode)
        begun.set()
        go_on.wait(5)
        raise LookupError("no such format")

    monkeypatch.setattr(codec, "_decode", fail_once)
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(), frame_id=1)
        await until(begun.is_set)
        await client.send(picture(), frame_id=2)
        await until(lambda: server.session().counters.received == 2)
        go_on.set()
        await client.expect("error", "picture: the server could not decode it")
        assert (await client.result()).id == 2
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]


async def test_a_large_bomb_costs_nothing(server: Server) -> None:
    """A whole PNG of 400 million pixels, in a few hundred kilobytes."""
    buffer = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(buffer, "PNG")
    before = psutil.Process().memory_info().rss
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(buffer.getvalue())
        await client.expect("error", "too large: 20000×20000")
        await client.expect("send_frame")
        await still_alive(client)
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


async def test_an_empty_picture_is_asked_for_again_without_an_error(server: Server) -> None:
    """Pages send empty pictures until their camera is ready; an error would alarm their users."""
    async with server.client(query="?output=ws") as client:
        await client.begin()
        for _ in range(20):
            await client.send(b"")
            await client.expect("send_frame")
        await still_alive(client)
    assert server.service.registry.counters.errors == 0


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (["this is not JSON"], "not JSON"),
        (["[1, 2, 3]"], "no object"),
        (['"next_frame"'], "no object"),
        ([{"status": "hello"}], "unknown status 'hello'"),
        ([{"prompt": "out of order"}], "status: "),
        ([NEXT, NEXT], "parameters: "),
        ([NEXT, {}, NEXT], "picture: "),
        ([b"binary where text is due"], "binary, where text is due"),
        ([NEXT, b"binary where text is due"], "parameters: .*binary"),
        ([NEXT, {"guidance_scale": "high"}], "guidance_scale: "),
        ([NEXT, {"guidance_scale": 1000}], "guidance_scale: "),
        ([NEXT, {"num_inference_steps": 1.5}], "num_inference_steps: "),
        ([NEXT, {"seed": -1}], "seed: "),
        ([NEXT, {"prompt": "x" * 100_000}], "prompt: 100000 characters"),
        ([NEXT, {"frame_id": "me"}], "frame_id: "),
        (["x" * 2_000_000], "2000000 characters"),
    ],
)
async def test_bad_messages(server: Server, messages: list[Any], words: str) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        for message in messages:
            if isinstance(message, dict):
                await client.say(message)
            else:
                await client.socket.send(message)
        error = await client.expect("error")
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(error)
        await client.expect("send_frame")
        await still_alive(client)


async def test_a_whole_frame_with_bad_parameters_is_one_error(server: Server) -> None:
    """The example client does not wait between its messages."""
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(), seed="x")
        await client.expect("error", "seed: ")
        await client.expect("send_frame")
        await still_alive(client)


@pytest.mark.parametrize("fragmented", [False, True])
async def test_a_message_of_100_megabytes(server: Server, fragmented: bool) -> None:
    process = psutil.Process()
    async with server.client(query="?output=ws") as client, server.client("bob", "?output=ws") as other:
        await client.begin()
        await other.begin()
        await client.say(NEXT)
        await client.say({})
        before = process.memory_info().rss
        if fragmented:
            chunk = bytes(10**6)
            await client.socket.send(chunk for _ in range(100))
        else:
            # What this test itself needs for sending: the message, masked.
            await client.socket.send(bytes(10**8))
        await client.expect("error", "picture: a message of 100000000 bytes; at most 16777216 are allowed")
        await client.expect("send_frame")
        await still_alive(client)
        await still_alive(other)
        assert process.memory_info().rss - before < 50 * 2**20, "memory was kept"


async def test_a_large_message_of_text(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.socket.send("x" * 20_000_000)
        await client.expect("error", "a message of 20000000 bytes")
        await client.expect("send_frame")
        await still_alive(client)


async def test_bad_input_costs_nobody_else_a_frame(make_server: MakeServer) -> None:
    server = make_server()
    async with server.client("bad") as bad, server.client("good", "?output=ws") as good:
        await bad.begin()
        await good.begin()
        for data, _ in PICTURES.values():
            await bad.send(data)
            await good.send(picture(50))
            await good.expect("send_frame")
            await good.result()
            await bad.expect("error")
            await bad.expect("send_frame")
    assert server.service.registry.counters.results == len(PICTURES)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("nan", "non-finite"), ("crash", "this row cannot be made"), ("bad prompt", "no such words")],
)
async def test_a_frame_that_fails_is_told(server: Server, prompt: str, words: str) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(), prompt=prompt)
        heard = [await client.status(), await client.status()]
        assert {message["status"] for message in heard} == {"error", "send_frame"}
        assert any(words in message.get("message", "") for message in heard)
        await client.send(picture(100), prompt="alive")
        assert (await client.result()).grey == 155


async def test_frames_that_all_fail_are_asked_for_ever_less_often(make_server: MakeServer) -> None:
    """Until one is made. Meanwhile the client is not idle: it was not asked."""
    server = make_server(server={"timeout": 0.3})
    asked: list[float] = []
    async with server.client(query="?output=ws") as client:
        await client.begin()
        while len(asked) < 8:
            await client.send(picture(), prompt="nan")
            while (await client.status())["status"] != "send_frame":
                pass
            asked.append(time.monotonic())
        apart = [after - before for before, after in itertools.pairwise(asked)]
        # One doubling less, where a frame was taken before it was known that the one before it failed.
        assert all(pause > 0.9 * PAUSE * 2**count for count, pause in enumerate(apart[1:]))
        await client.send(picture())
        await client.result()
        await client.credit()
        began = time.monotonic()
        await client.send(picture())
        await client.credit()
        assert time.monotonic() - began < apart[-1]


@pytest.mark.parametrize(
    ("user", "query", "words"),
    [
        ("x" * 129, "", "userId: "),
        ("a%20b", "", "userId: "),
        ("a/b", "", "userId: "),
        ("%C3%A9", "", "userId: "),
        ("ann", "?mode=sound", "mode: "),
        ("ann", "?output=fax", "output: "),
        ("ann", "?output=ws&format=gif", "format: "),
        ("ann", "?quality=0", "quality: "),
    ],
)
async def test_a_bad_address_is_accepted_told_and_closed(
    server: Server, user: str, query: str, words: str
) -> None:
    async with server.client(user, query) as client:
        await client.expect("error", words)
        await client.socket.wait_closed()
        assert client.socket.close_code == 1008


async def test_another_address_is_told_the_right_one(server: Server) -> None:
    async with connect(f"ws://127.0.0.1:{server.port}/ws/ann") as socket:
        assert "it is at /api/ws/{userId}" in str(await socket.recv())


@pytest.mark.parametrize("user", ["a", "x" * 128, "A-z_0.9~", "550e8400-e29b-41d4-a716-446655440000"])
async def test_any_url_safe_user(server: Server, user: str) -> None:
    async with server.client(user) as client:
        await client.begin()
        assert server.service.registry.find(user) is not None


def test_the_pictures_of_these_tests_are_what_they_say() -> None:
    assert np.asarray(Pillow.open(io.BytesIO(PICTURES["cmyk"][0]))).shape == (SIZE, SIZE, 4)
