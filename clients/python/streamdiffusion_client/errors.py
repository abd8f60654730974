"""What can go wrong, as far as connecting again does not mend it."""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors of this package; the text is the server's, if it said anything."""


class UnreachableError(ClientError, ConnectionError):
    """There is no server at the address that a client was to connect to."""


class FrameError(ClientError):
    """A frame could not be taken or made. The text begins with the name of the field at fault, if one is;
    the connection lives on.
    """


class RefusedError(ClientError):
    """The server ended the connection for good.

    Attributes:
        code: of the WebSocket's close; docs/protocol.md lists them.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ServerFullError(RefusedError):
    """The server has as many users as it takes."""


FULL = 1013
FINAL_CODES = frozenset({1008, FULL, 4001, 4002})
"""Closes after which connecting again by itself would help nobody: wrong address, full, taken over, idle."""


def refusal(code: int, message: str) -> RefusedError:
    """The error for a final code."""
    return (ServerFullError if code == FULL else RefusedError)(message, code)
