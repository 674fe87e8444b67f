"""A child process at the other end of a channel: starts it, gives it orders, receives its events, and notices its end.

An order carries a number, which its answer repeats; all other messages are events. A reaper task notices the end of the process
whether or not anything waits for it. Each child has its own session, so that Ctrl-C reaches only the supervisor, which stops
its children in order.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from embargo import events
from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel, ChannelError, Events, Failed, Received
from embargo.daemon.process.outbox import Account
from embargo.daemon.process.spawn import HERE, Process, Spawn
from embargo.errors import EmbargoError, describe, printable
from embargo.events import Event
from embargo.records import Answer, Done, Order, answer_of

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # for an ordinary answer
MAX_COUNTS = 10_000  # kept from earlier runs; there are a few hundred
MESSAGES_PER_TURN = 16  # read from one child before other tasks run

#: called with a child, events that it has sent, and the number of events that were lost before them
OnEvents = Callable[["Child", list[Event], int], None]


class ChildError(EmbargoError):
    """An order was not carried out."""


class ChildGone(ChildError):
    """The child is not running, or ended before it answered."""


class ChildSilent(ChildError):
    """The child is running but does not answer."""


class Counts:
    """Counters of a child, by kind and name, summed over all its runs: a counter that falls has started again from zero."""

    def __init__(self) -> None:
        self._before: Counter[tuple[str, str]] = Counter()
        self._now: Counter[tuple[str, str]] = Counter()

    def update(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Take the current counters; none at the start of a run. One falls when its owner is replaced, such as an upstream."""
        for key, count in self._now.items():
            if count > counts.get(key, 0) and (key in self._before or len(self._before) < MAX_COUNTS):
                self._before[key] += count
        self._now = Counter(counts)

    def of(self, kind: str) -> Counter[str]:
        """The totals of one kind, by name."""
        total: Counter[str] = Counter()
        for counts in (self._before, self._now):
            total.update({name: count for (kind_, name), count in counts.items() if kind_ == kind})
        return total


class Child:
    """A child process, which may be started again after its end. `counts` are totals over all its runs."""

    def __init__(
        self, name: str, process: str, orders: Iterable[type], on_events: OnEvents, ledgers: str, spawn: Spawn = HERE,
        tells: Collection[str] = (),
    ) -> None:  # fmt: skip
        """`process`: a key of `process.MODULES`; `orders`: the types that it takes; `ledgers`: the directory of its ledger;
        `tells`: the events that it may send.
        """
        self.name = name
        self._module, self._spawn = process, spawn
        self._answered_by = {order: answer_of(order) for order in orders}
        self._accepts = (Events, Failed, *self._answered_by.values())
        self._on_events = on_events
        self._tells = tells
        self._channel: Channel | None = None
        self._process: Process | None = None
        self._answers: dict[int, tuple[type, asyncio.Future[Any]]] = {}
        self._number = 0
        self._page = f"{ledgers}/{name.replace(' ', '-')}"
        self._account: Account | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._status = 0
        self.counts = Counts()

    @property
    def pid(self) -> int:
        """The process id of the present or last run; 0 before the first."""
        return self._process.pid if self._process is not None else 0

    @property
    def uid(self) -> int:
        """The user id that the process started with."""
        return self._process.uid if self._process is not None else os.geteuid()

    @property
    def running(self) -> bool:
        """Whether orders can be given."""
        return self._channel is not None

    async def start(self) -> None:
        """Start the process. ChildError if that fails. Whether the child works is known from its answer to the first order."""
        try:
            with contextlib.ExitStack() as undo:
                account = Account(self._page)
                undo.callback(account.close)
                ours, theirs = channel.pair(self._accepts)
                undo.callback(ours.close)
                with theirs:
                    self._process = await self._spawn(self._module, [theirs.fileno(), account.page])
                undo.pop_all()
        except OSError as error:
            raise ChildError(f"{self.name} cannot be started: {describe(error)}") from None
        self.attach(ours, account)

    def attach(self, ours: Channel, account: Account) -> None:
        """Receive from this channel from now on, and count written attempts in this account."""
        self.counts.update({})
        ours.setblocking(False)
        self._channel, self._account = ours, account
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        self._reaper = asyncio.get_running_loop().create_task(self._reap(), name=f"keeper: reaper of {self.name}")

    async def _reap(self) -> None:
        assert self._process is not None
        self._finish(await self._process.wait())

    async def wait(self) -> int:
        """Wait until the process has ended and its last events are read; the exit status."""
        if self._reaper is not None:
            await asyncio.wait([self._reaper])
        return self._status

    def _finish(self, status: int) -> None:
        """The process has ended: read its last messages and fail the orders that are not answered."""
        self._status = status
        try:
            self._read_remaining()
        finally:
            if self._channel is not None:
                asyncio.get_running_loop().remove_reader(self._channel.fileno())
                self._channel.close()
                self._channel = None
            if self._account is not None:
                self._account.close()
                self._account = None
            for _, answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ChildGone(f"{self.name} has ended"))
            self._answers.clear()

    def _read_remaining(self) -> None:
        if self._channel is not None:
            self._channel.shut()  # a descendant may still hold the other end and keep sending
            with contextlib.suppress(BlockingIOError):
                while self._take_one():
                    pass
        if self._account is not None and (lost := self._account.missing()):
            self._log([], Events(lost, lost, b""))

    def _readable(self) -> None:
        """Read messages, a limited number per turn of the event loop."""
        assert self._channel is not None
        try:
            for _ in range(MESSAGES_PER_TURN):
                if not self._take_one():
                    asyncio.get_running_loop().remove_reader(self._channel.fileno())  # `_finish` reads the rest
                    return
        except BlockingIOError:
            return

    def _take_one(self) -> bool:
        """Read one message; False if no more will come. BlockingIOError if there is none yet."""
        assert self._channel is not None
        try:
            received = self._channel.receive(channel.MAX_ANSWER)
        except BlockingIOError:
            raise
        except ChannelError as error:
            self.kill_for(str(error))
            return False
        except OSError:
            return False
        return received is not None and self._take(received)

    def _take(self, received: Received) -> bool:
        """Handle events or an answer; False for anything else, for which the child is killed."""
        if isinstance(received.record, Events):
            return self._take_events(received.record)
        kind, answer = self._answers.pop(received.number or 0, (None, None))
        if answer is None or answer.done():  # nothing waits for this answer any more
            return True
        if isinstance(received.record, Failed):
            answer.set_exception(ChildError(printable(f"{self.name}: {received.record.reason}")))
        elif type(received.record) is kind:
            answer.set_result(received.record)
        else:
            answer.set_exception(ChildError(f"{self.name} broke the protocol"))
            self.kill_for(f"{type(received.record).__name__} is not the answer to its order")
            return False
        return True

    def _take_events(self, record: Events) -> bool:
        """Check events by the schema and pass them on; False for others, for which the child is killed."""
        try:
            told = [events.received(line, self._tells) for line in record.lines.split(b"\n")[:-1]]
        except ValueError as error:
            self.kill_for(f"an event that it cannot have seen: {error}")
            return False
        self._log(told, record)
        return True

    def _log(self, told: list[Event], record: Events) -> None:
        self._on_events(self, told, record.lost)
        if self._account is not None:
            self._account.add_written(record.attempts)

    async def ask(self, order: Order[Answer], fds: Sequence[int] = (), seconds: float = ANSWER_SECONDS) -> Answer:
        """Give an order and wait for its answer. ChildError if the order fails or is not answered in time."""
        self._number += 1
        number = self._number
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = self._answered_by[type(order)], answer
        try:
            await self._send(order, number, fds)
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise ChildSilent(f"{self.name} did not answer in {seconds:.0f} s") from None
        finally:
            self._answers.pop(number, None)

    async def _send(self, order: Order[Any], number: int, fds: Sequence[int]) -> None:
        for _ in range(200):
            if self._channel is None:
                raise ChildGone(f"{self.name} is not running")
            try:
                self._channel.send(order, fds, number)
            except BlockingIOError:  # its queue is full
                await asyncio.sleep(0.01)
            except ConnectionError as error:
                raise ChildGone(f"{self.name} has ended: {error.strerror}") from None
            except OSError as error:  # here, not in the child: no descriptor or memory left; the child works as before
                raise ChildError(f"an order cannot be sent to {self.name}: {error.strerror}") from None
            except ChannelError as error:
                raise ChildError(f"{self.name}: {error}") from None
            else:
                return
        raise ChildSilent(f"{self.name} does not read its orders")

    def tell(self, order: Order[Done]) -> None:
        """Give an order without waiting for its answer. It is lost if the child has ended or does not read."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(order)

    async def stop(self, order: Order[Done], seconds: float = 5.0) -> bool:
        """Order the child to end, and kill it if it does not within `seconds`. Returns whether it carried the order out."""
        reaper = self._reaper  # of this run: a keeper may start the next one immediately
        if reaper is None or not self.running:
            return False
        done = False
        with contextlib.suppress(ChildError):
            await self.ask(order, seconds=seconds)
            done = True
        ended, _ = await asyncio.wait([reaper], timeout=seconds)
        if not ended:
            log.error("%s does not end when ordered to; killing it", self.name)
            self.kill()
            ended, _ = await asyncio.wait([reaper], timeout=seconds)
            if not ended:
                log.critical("%s was killed but has not ended", self.name)
        return done

    def kill_for(self, fault: str) -> None:
        """Kill the child because it broke the protocol: assume that it is compromised."""
        log.error("%s broke the protocol (%s); killing it", self.name, printable(fault))
        self.kill()

    def kill(self) -> None:
        """Kill the process. No effect if it is not running."""
        if self._process is not None:
            self._process.kill()
