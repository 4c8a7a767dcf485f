"""Raw bytes on a connection."""

import select
import socket
from collections.abc import Iterable
from contextlib import closing

TIMEOUT_SECONDS = 30


def connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS)


def exchange(url: str, parts: Iterable[bytes], *, pause: float | None = None) -> bytes:
    """Send parts and return all that comes back until the server ends the connection.

    Args:
        url: of the server.
        parts: to be sent.
        pause: seconds between two parts; nothing is sent any more once the server has answered. None: all at once.
    """
    with closing(connect(url)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                if pause is not None and select.select([connection], [], [], pause)[0]:
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has ended the connection
        return _received(connection)


def _received(connection: socket.socket) -> bytes:
    answer = b""
    while True:
        try:
            received = connection.recv(65536)
        except ConnectionResetError:
            return answer
        if not received:
            return answer
        answer += received
