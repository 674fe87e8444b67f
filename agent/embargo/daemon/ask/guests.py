"""The connections of a server that answers one request on each: a bounded number, and those that send nothing give way."""

import asyncio
import contextlib
from collections.abc import Iterator


class Guests:
    """Connections that are served, at most `most` at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._guests: dict[asyncio.StreamWriter, bool] = {}  # whether the request has not come yet; the oldest first

    @contextlib.contextmanager
    def enter(self, writer: asyncio.StreamWriter) -> Iterator[bool]:
        """Whether this connection is served, within the context.

        When there are too many, the one whose request has been awaited for longest is closed. Without such a one the new
        connection is not served.
        """
        silent = next((guest for guest, waits in self._guests.items() if waits), None)
        if len(self._guests) >= self._most and silent is not None:
            del self._guests[silent]
            silent.transport.abort()
        served = len(self._guests) < self._most
        if served:
            self._guests[writer] = True
        try:
            yield served
        finally:
            self._guests.pop(writer, None)

    def asked(self, writer: asyncio.StreamWriter) -> bool:
        """Note that a request has come. False: the connection was closed meanwhile."""
        if writer not in self._guests:
            return False
        self._guests[writer] = False
        return True
