"""A process of ours at the other end of a channel: started, asked, told, and seen to end.

Questions carry a number that comes back in the answer; everything else that arrives is the child's own news. A reaper sees
to it that the end of a process is noticed whoever waits. Children are sessions of their own: Ctrl-C is for the supervisor,
which stops them in order.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel, ChannelError
from embargo.daemon.process.outbox import Account
from embargo.daemon.process.spawn import HERE, Process, Spawn
from embargo.errors import EmbargoError, said

log = logging.getLogger(__name__)

ANSWER = 10.0  # seconds for an ordinary answer
MAX_COUNTS = 10_000  # kept of what has begun anew: there are some hundred
AT_ONCE = 16  # messages of one child before everything else has its turn

News = Callable[["Child", dict[str, Any]], None]


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

    def heard(self, counts: Mapping[tuple[str, str], int]) -> None:
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
    def __init__(self, name: str, module: str, news: News, ledgers: str, spawn: Spawn = HERE) -> None:
        """`ledgers`: the directory in which its ledger stands."""
        self.name = name
        self._module, self._spawn = module, spawn
        self._news = news
        self._channel: Channel | None = None
        self._process: Process | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
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
                ours, theirs = channel.pair()
                undo.callback(ours.close)
                with theirs:
                    self._process = await self._spawn(self._module, [theirs.fileno(), account.page])
                undo.pop_all()
        except OSError as error:
            raise ChildError(f"{self.name} cannot be started: {said(error)}") from None
        self.adopt(ours, account)

    def adopt(self, ours: Channel, account: Account) -> None:
        """Listen to this channel from now on, and keep this account of what is written."""
        self.counts.heard({})
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
            for answer in self._answers.values():
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
            self._heard({"op": "events", "lines": b"", "lost": lost, "attempts": lost})

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
        if received is not None:
            self._take(*received)
        return received is not None

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        number = message.get("id")
        answer = self._answers.pop(number, None) if isinstance(number, int) else None
        if answer is None:
            self._heard(message)
        elif answer.done():
            return
        elif message.get("op") == "error":
            answer.set_exception(ChildError(f"{self.name}: {message.get('error')}"))
        else:
            answer.set_result(message)

    def _heard(self, message: dict[str, Any]) -> None:
        self._news(self, message)
        if self._account is not None and message.get("op") == "events":
            self._account.wrote(message["attempts"])

    async def ask(self, op: str, fds: Sequence[int] = (), seconds: float = ANSWER, **members: Any) -> dict[str, Any]:
        """Send a question and wait for its answer. ChildError when there is none."""
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._send({"op": op, "id": number, **members}, fds)
            return await asyncio.wait_for(answer, seconds)
        except TimeoutError:
            raise ChildSilent(f"{self.name} did not answer in {seconds:.0f} s") from None
        finally:
            self._answers.pop(number, None)

    async def _send(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        for _ in range(200):
            if self._channel is None:
                raise ChildGone(f"{self.name} is not running")
            try:
                self._channel.send(message, fds)
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

    def tell(self, op: str, **members: Any) -> None:
        """Send something that needs no answer; lost when the child is gone or does not read."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.send({"op": op, **members})

    async def stop(self, seconds: float = 5.0, **members: Any) -> bool:
        """Ask it to end, and end it if it does not. Did it say that it has done what belongs to that?"""
        reaper = self._reaper  # of this run: a keeper may start the next one at once
        if reaper is None or not self.running:
            return False
        done = False
        with contextlib.suppress(ChildError):
            await self.ask("stop", seconds=seconds, **members)
            done = True
        ended, _ = await asyncio.wait([reaper], timeout=seconds)
        if not ended:
            log.error("%s does not end; it is killed", self.name)
            self.kill()
            ended, _ = await asyncio.wait([reaper], timeout=seconds)
            if not ended:
                log.critical("%s does not end although it was killed", self.name)
        return done

    def kill_for(self, nonsense: str) -> None:
        """It is not what we started any more."""
        log.error("%s sent nonsense, and is killed: %s", self.name, nonsense)
        self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
