"""Messages from another process, read without waiting for the rest of one.

`Connection.recv` waits until a message is there as a whole. A process that is stopped or killed in the middle of
sending would stop its reader too.
"""

from __future__ import annotations

import os
import pickle
import struct
from multiprocessing.connection import Connection
from typing import Any

CHUNK = 1 << 16
"""Bytes that are read at once."""


class Inbox:
    """Messages that arrive through a connection of `multiprocessing`, which frames them by their length.

    :param connection: end of a pipe; `multiprocessing.connection.wait` tells when there is something to read
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._bytes = bytearray()

    def read(self) -> list[Any]:
        """Read what has arrived, and return the messages that are there as a whole; call it when there is something.

        :raises EOFError: where the other side has closed the connection
        """
        arrived = os.read(self._connection.fileno(), CHUNK)
        if not arrived:
            raise EOFError
        self._bytes += arrived
        messages = []
        while (place := self._first()) is not None:
            messages.append(self.load(bytes(self._bytes[place])))
            del self._bytes[: place.stop]
        return messages

    def load(self, message: bytes) -> Any:
        """Return what a whole message holds."""
        return pickle.loads(message)

    def _first(self) -> slice | None:
        """Return the place of the first message in the bytes; None if it is not there as a whole."""
        start, length = 4, _number("!i", self._bytes)
        if length == -1:  # a length that needs more than 31 bits follows
            start, length = 12, _number("!xxxxQ", self._bytes)
        if length is None or len(self._bytes) < start + length:
            return None
        return slice(start, start + length)


def _number(form: str, data: bytearray) -> int | None:
    """Return the number at the beginning of `data`; None if it is not there as a whole."""
    return struct.unpack_from(form, data)[0] if len(data) >= struct.calcsize(form) else None
