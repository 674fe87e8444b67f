"""A process of ours at the other end of a channel: started, asked, told, and seen to end.

Orders carry a number that comes back in the answer; everything else that arrives is news. A reaper notices the end of the
process whether or not anything waits for it. Children are sessions of their own: Ctrl-C is for the supervisor, which stops
them in order.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel, ChannelError, Events, Failed, Received
from embargo.daemon.process.outbox import Account
from embargo.daemon.process.spawn import HERE, Process, Spawn
from embargo.errors import EmbargoError, said
from embargo.records import Answer, Done, Order, answer_of

log = logging.getLogger(__name__)

ANSWER = 10.0  # seconds for an ordinary answer
MAX_COUNTS = 10_000  # kept of what has begun anew: there are some hundred
AT_ONCE = 16  # messages of one child before everything else has its turn

News = Callable[["Child", Events], None]


class ChildError(EmbargoError):
    """The child could not do what it was asked."""


class ChildGone(ChildError):
    """There is no child to ask, or it ended while it was asked."""


class ChildSilent(ChildError):
    """The child lives and does not answer."""


class Counts:
    """What a child has counted, by kind and name, in all its runs: a total that falls is taken for a new beginning."""

    def __init__(self) -> None:
        self._before: Counter[tuple[str, str]] = Counter()
        self._now: Counter[tuple[str, str]] = Counter()

    def update(self, counts: Mapping[tuple[str, str], int]) -> None:
        """What it says now; nothing at the start of a run. One that fell begins anew, as an upstream's under other settings."""
        for key, count in self._now.items():
            if count > counts.get(key, 0) and (key in self._before or len(self._before) < MAX_COUNTS):
                self._before[key] += count
        self._now = Counter(counts)

    def of(self, kind: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for counts in (self._before, self._now):
            found.update({name: count for (kind_, name), count in counts.items() if kind_ == kind})
        return found


class Child:
    def __init__(self, name: str, process: str, orders: Iterable[type], news: News, ledgers: str, spawn: Spawn = HERE) -> None:
        """`process`: which of `process.MODULES`; `orders`: what it can be asked; `ledgers`: the directory of its ledger."""
        self.name = name
        self._module, self._spawn = process, spawn
        self._answered_by = {order: answer_of(order) for order in orders}
        self._accepts = (Events, Failed, *self._answered_by.values())
        self._news = news
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
        return self._process.pid if self._process is not None else 0

    @property
    def uid(self) -> int:
        """Whom it runs as at its start."""
        return self._process.uid if self._process is not None else os.geteuid()

    @property
    def running(self) -> bool:
        return self._channel is not None

    async def start(self) -> None:
        """Start the process; ChildError when that cannot be. The answer to the first question tells whether it lives."""
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
            raise ChildError(f"{self.name} cannot be started: {said(error)}") from None
        self.adopt(ours, account)

    def adopt(self, ours: Channel, account: Account) -> None:
        """Listen to this channel from now on, and keep this account of what is written."""
        self.counts.update({})
        ours.setblocking(False)
        self._channel, self._account = ours, account
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        self._reaper = asyncio.get_running_loop().create_task(self._reap(), name=f"keeper: reaper of {self.name}")

    async def _reap(self) -> None:
        assert self._process is not None
        self._finish(await self._process.wait())

    async def wait(self) -> int:
        """The exit status, when it has ended and the last of its news is read."""
        if self._reaper is not None:
            await asyncio.wait([self._reaper])
        return self._status

    def _finish(self, status: int) -> None:
        """It has ended: take what it said last, and let nobody wait for it any longer."""
        self._status = status
        try:
            self._take_the_rest()
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
                    answer.set_exception(ChildGone(f"{self.name} ended"))
            self._answers.clear()

    def _take_the_rest(self) -> None:
        if self._channel is not None:
            self._channel.shut()  # a process that it left behind may have the other end, and go on
            with contextlib.suppress(BlockingIOError):
                while self._take_one():
                    pass
        if self._account is not None and (lost := self._account.missing()):
            self._log(Events(b"", lost, lost))

    def _readable(self) -> None:
        """Take what is there, some of it at once."""
        assert self._channel is not None
        try:
            for _ in range(AT_ONCE):
                if not self._take_one():
                    asyncio.get_running_loop().remove_reader(self._channel.fileno())  # `_finish` sees the rest
                    return
        except BlockingIOError:
            return

    def _take_one(self) -> bool:
        """Take a message; False when there will be none. BlockingIOError when there is none yet."""
        assert self._channel is not None
        try:
            received = self._channel.receive(channel.MAX_ANSWER if self._answers else 0)
        except BlockingIOError:
            raise
        except ChannelError as error:
            self.kill_for(str(error))
            return False
        except OSError:
            return False
        return received is not None and self._take(received)

    def _take(self, received: Received) -> bool:
        """News, or the answer to an order; False when it is neither, and the child is killed for it."""
        for fd in received.fds:
            os.close(fd)
        if isinstance(received.record, Events):
            self._log(received.record)
            return True
        kind, answer = self._answers.pop(received.number or 0, (None, None))
        if answer is None or answer.done():  # the order was given up
            return True
        if isinstance(received.record, Failed):
            answer.set_exception(ChildError(f"{self.name}: {received.record.reason}"))
        elif type(received.record) is kind:
            answer.set_result(received.record)
        else:
            answer.set_exception(ChildError(f"{self.name} broke the protocol"))
            self.kill_for(f"{type(received.record).__name__} answers no order that was given")
            return False
        return True

    def _log(self, events: Events) -> None:
        self._news(self, events)
        if self._account is not None:
            self._account.wrote(events.attempts)

    async def ask(self, order: Order[Answer], fds: Sequence[int] = (), seconds: float = ANSWER) -> Answer:
        """Give an order and wait for its answer. ChildError when there is none, or the order was not carried out."""
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
            except BlockingIOError:  # it has not read the last ones yet
                await asyncio.sleep(0.01)
            except ConnectionError as error:
                raise ChildGone(f"{self.name} is gone: {error.strerror}") from None
            except OSError as error:  # of ours: no descriptor is left, or no memory; it lives, and goes on as it was
                raise ChildError(f"{self.name} cannot be told: {error.strerror}") from None
            except ChannelError as error:
                raise ChildError(f"{self.name}: {error}") from None
            else:
                return
        raise ChildSilent(f"{self.name} does not read")

    def tell(self, order: Order[Done]) -> None:
        """Give an order without waiting for its answer; lost when the child is gone or does not read."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send(order)

    async def stop(self, order: Order[Done], seconds: float = 5.0) -> bool:
        """Ask it to end by this order, and end it if it does not. Whether the order was carried out."""
        reaper = self._reaper  # of this run: a keeper may start the next one at once
        if reaper is None or not self.running:
            return False
        done = False
        with contextlib.suppress(ChildError):
            await self.ask(order, seconds=seconds)
            done = True
        ended, _ = await asyncio.wait([reaper], timeout=seconds)
        if not ended:
            log.error("%s does not end; it is killed", self.name)
            self.kill()
            ended, _ = await asyncio.wait([reaper], timeout=seconds)
            if not ended:
                log.critical("%s does not end although it was killed", self.name)
        return done

    def kill_for(self, fault: str) -> None:
        """The child broke the protocol: assume that it is compromised, and kill it."""
        log.error("%s broke the protocol and is killed: %s", self.name, fault)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
