"""Which hardware address answers for an IP address: the kernel's neighbour table, looked up now and then.

A thread reads the table (`host.rtnetlink`), since a list of thousands takes a while to be decoded (50 µs a neighbour) and the
guardian must not stand still for it. A look-up that the last table can answer does not wait for the next one. Another one
waits WAIT_SECONDS at most, once for each reading; then the last table has to do.
"""

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

from embargo.daemon.host import rtnetlink

FRESH_SECONDS = 10.0  # for which a table will do
WAIT_SECONDS = 0.5  # enough for some thousand neighbours, or to load pyroute2


class Neighbours:
    """The table of this network namespace, without neighbours that have no hardware address."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "neighbours")
        self._reading: Future[dict[str, str]] | None = None
        self._waited = False  # for this reading
        self._read_at = -FRESH_SECONDS
        self._macs: dict[str, str] = {}

    def prepare(self) -> None:
        """Have what a reading needs loaded, without waiting for it."""
        self._reader.submit(rtnetlink.load)

    def mac(self, address: str, now: float) -> str:
        """The hardware address of an IP address; empty for one that is no neighbour's."""
        self._look(now, wait=address not in self._macs)
        return self._macs.get(address, "")

    def addresses(self, mac: str, now: float) -> list[str]:
        """The IP addresses of the machine with this hardware address."""
        if not mac:
            return []
        self._look(now, wait=mac not in self._macs.values())
        return [address for address, other in self._macs.items() if other == mac]

    def _look(self, now: float, *, wait: bool) -> None:
        """Start to read the table anew when it is older than FRESH_SECONDS, and take it over when it has been read."""
        if self._reading is None and now >= self._read_at + FRESH_SECONDS:
            self._read_at, self._waited = now, False
            self._reading = self._reader.submit(rtnetlink.neighbours)
        if self._reading is None:
            return
        seconds = WAIT_SECONDS if wait and not self._waited else 0.0
        self._waited = self._waited or wait
        with contextlib.suppress(OSError):  # a TimeoutError too: the last table has to do
            self._macs = self._reading.result(seconds)
        if self._reading.done():
            self._reading = None
