"""The WebSocket as front ends use it, over real sockets."""

from __future__ import annotations

from tests.api.conftest import Server, picture


async def test_a_picture_goes_in_and_comes_back(server: Server) -> None:
    async with server.client(query="?output=ws") as client:
        await client.begin()
        await client.send(picture(100), prompt="a cat")
        await client.expect("send_frame")
        result = await client.result()
        assert result[48:50] == b"\xff\xd8"
