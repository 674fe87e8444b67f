"""Which hardware address answers for an IP address: the kernel's neighbour table, looked up now and then.

A thread reads the table (`host.rtnetlink`), since a list of thousands takes a while to be decoded (50 µs a neighbour) and the
guardian must not stand still for it. A look-up waits WAIT_SECONDS at most, enough for some hundred neighbours; if the list is
not there by then, the one before has to do.
"""

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

from embargo.daemon.host import rtnetlink

FRESH_SECONDS = 10.0  # for which a table will do
WAIT_SECONDS = 0.05  # that one look-up in FRESH_SECONDS may wait for the thread,
FIRST_WAIT_SECONDS = 0.5  # and the very first one, for which pyroute2 is loaded


class Neighbours:
    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "neighbours")
        self._reading: Future[dict[str, str]] | None = None
        self._read_at = -FRESH_SECONDS
        self._macs: dict[str, str] = {}

    def mac(self, address: str, now: float) -> str:
        """The hardware address of an IP address; empty for one that is no neighbour's."""
        self.look(now)
        return self._macs.get(address, "")

    def addresses(self, mac: str, now: float) -> list[str]:
        """The IP addresses of the machine with this hardware address."""
        self.look(now)
        return [address for address, each in self._macs.items() if each == mac] if mac else []

    def look(self, now: float) -> None:
        """Read the table anew when it is older than FRESH_SECONDS."""
        seconds = 0.0
        if self._reading is None and now >= self._read_at + FRESH_SECONDS:
            self._read_at = now
            self._reading = self._reader.submit(rtnetlink.neighbours)
            seconds = WAIT_SECONDS if self._macs else FIRST_WAIT_SECONDS
        if self._reading is not None:
            with contextlib.suppress(OSError):  # a TimeoutError too: what was read before will do
                self._macs = self._reading.result(seconds)
            if self._reading.done():
                self._reading = None
