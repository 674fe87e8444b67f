"""A selector for the event loop that answers queries while it waits.

A turn of the event loop costs more than an answer. So queries are taken where the loop waits: as long as only queries come,
and the fast path answers all of them, the loop is not woken. Use: `asyncio.SelectorEventLoop(Selector())`.
"""

import asyncio
import selectors
from collections.abc import Callable

from embargo.daemon.resolve.intake import Drained, Intake, Listener
from embargo.daemon.resolve.stream import Streams

Ready = list[tuple[selectors.SelectorKey, int]]


class Selector(selectors.EpollSelector):
    """An epoll selector; `listen` gives it the sockets of clients."""

    def __init__(self) -> None:
        super().__init__()
        self._intake: Intake | None = None
        self._taken: Callable[[Drained], None]
        self._listening: set[int] = set()

    def listen(self, listeners: list[Listener], streams: Streams, intake: Intake, taken: Callable[[Drained], None]) -> None:
        """Take queries from these sockets and connections. `taken` is called with what the fast path leaves of a batch."""
        for listener in listeners:
            self.register(listener.fileno, selectors.EVENT_READ)
            self._listening.add(listener.fileno)
            intake.watch(listener)
        self.register(streams.epoll.fileno(), selectors.EVENT_READ)
        self._listening.add(streams.epoll.fileno())
        self._intake, self._taken = intake, _guarded(taken)

    def leave(self) -> None:
        """Take no more queries."""
        for number in self._listening:
            self.unregister(number)
        self._listening.clear()
        self._intake = None

    def select(self, timeout: float | None = None) -> Ready:
        """What is ready apart from queries, after at most so many seconds, or as soon as a query needs the loop."""
        if self._intake is None:
            return super().select(timeout)
        try:
            ready = self._intake.wait(self.fileno(), timeout, self._taken)
        except Exception as error:
            _report("queries could not be taken", error)
            ready = True
        return [item for item in super().select(0) if item[0].fd not in self._listening] if ready else []


def _guarded(taken: Callable[[Drained], None]) -> Callable[[Drained], None]:
    """The same, but an exception goes to the loop's handler, as from any callback: one bad batch must not end the worker."""

    def guarded(drained: Drained) -> None:
        try:
            taken(drained)
        except Exception as error:
            _report("a batch of queries was not finished", error)

    return guarded


def _report(what: str, error: Exception) -> None:
    asyncio.get_running_loop().call_exception_handler({"message": what, "exception": error})
