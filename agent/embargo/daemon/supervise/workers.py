"""The resolver processes: started, kept alive, moved from one generation to the next.

With `workers = 0` one Resolver runs in this process instead, at the other end of the same kind of channel, so there is no
second code path.
"""

import asyncio
import contextlib
import gc
import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from embargo.daemon.host.endpoints import Sockets
from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel
from embargo.daemon.process.child import Child, ChildError, ChildGone, ChildSilent, News
from embargo.daemon.process.outbox import Account, Ledger
from embargo.daemon.process.spawn import HERE, START, Spawn
from embargo.daemon.resolve import resolver
from embargo.daemon.supervise.generations import Generation

log = logging.getLogger(__name__)

FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0  # seconds before a worker that died is started again; doubled per death in a row
PATIENCE = 5.0  # seconds a worker has to take a new policy; one that hangs longer serves nobody and is killed
ANSWER = 1.5  # seconds for what a worker has counted: with a heartbeat's pause less than the kernel waits for `alive`
MISSES = 3  # questions in a row that a worker may leave without an answer
LEVELS = ("pending", "entries", "octets")  # what goes up and down of that which a worker counts
MAX_WORD = 1000  # characters of a counter, a class or a server
PROVEN = 30.0  # seconds after which a death counts as the first one again

Settings = dict[str, Any]  # what a resolver needs of the configuration


class Inside(Child):
    """A Resolver in this process, behind the face of a child."""

    def __init__(self, name: str, news: News, ledgers: str) -> None:
        super().__init__(name, "", news, ledgers)
        self._theirs: socket.socket
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return 0

    async def start(self) -> None:
        ours, theirs = channel.pair()
        self._theirs = theirs
        account = Account(self._page)
        work = resolver.serve(Channel(theirs), Ledger(account.page))
        self._task = asyncio.get_running_loop().create_task(work, name=f"keeper: {self.name}")
        self.adopt(ours, account)

    async def _reap(self) -> None:
        assert self._task is not None
        await asyncio.wait([self._task])
        self._theirs.close()
        failure = None if self._task.cancelled() else self._task.exception()
        if failure is not None:
            log.error("%s failed", self.name, exc_info=failure)
        gc.collect()  # a resolver is full of cycles, and holds a mapped image; a process would be gone by now
        self._finish(int(failure is not None))

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Workers:
    """`in_force` tells the generation and the settings that a worker starts with; `started` is told of each that has."""

    def __init__(
        self,
        in_force: Callable[[], tuple[Generation, Settings]],
        news: News,
        started: Callable[[Child], Awaitable[None]],
        ledgers: str,
        spawn: Spawn = HERE,
    ) -> None:
        self._in_force = in_force
        self._started = started
        self._news = news
        self._ledgers = ledgers
        self._spawn = spawn
        self._sockets = Sockets()
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._had: list[Settings] = []  # the settings that each worker has
        self._stopping: set[Child] = set()
        self._renewing: set[Child] = set()
        self._missed: Counter[Child] = Counter()
        self.user: tuple[int, int] | None = None  # whom they run as, if not as we do
        self.inside = False
        self.restarts = 0

    @property
    def uid(self) -> int:
        """Who asks the upstreams."""
        return self.user[0] if self.user else os.geteuid()

    @property
    def children(self) -> list[Child]:
        return list(self._children)

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children if child.running]

    async def run(self, sockets: Sockets, count: int) -> None:
        """Start this many workers (0: one inside this process) and wait until each one answers. ChildError otherwise."""
        self._sockets = sockets
        self.inside = count == 0
        for number in range(max(count, 1)):
            name = f"resolver {number}"
            child: Child = (
                Inside(name, self._news, self._ledgers) if self.inside
                else Child(name, "resolver", self._news, self._ledgers, self._spawn)
            )  # fmt: skip
            self._children.append(child)
            self._had.append({})
        _raise_any(await asyncio.gather(*map(self._start, range(len(self._children))), return_exceptions=True))
        for number, child in enumerate(self._children):
            keeper = asyncio.get_running_loop().create_task(self._keep(number), name=f"keeper of {child.name}")
            self._keepers.append(keeper)

    async def _start(self, number: int) -> None:
        child = self._children[number]
        self._had[number] = {}  # a change that comes meanwhile tells it all
        await child.start()
        given = self._spawn.gives_user and not self.inside
        if given and child.uid != self.uid:
            log.warning(
                "%s is user %d, as its unit says; [state] user says %d: let both be the same", child.name, child.uid, self.uid
            )
            self.user = child.uid, os.getegid()
        generation, settings = self._in_force()
        mine = list(self._sockets.of(number))
        # a worker inside this process closes what it was given; the originals must stay
        fds = [generation.fd, *(sock.fileno() for _, sock in mine)]
        await child.ask(
            "start", fds, **_judgement(generation), dns=settings, sockets=[kind for kind, _ in mine],
            user=None if given else self.user, inside=self.inside,
        )  # fmt: skip
        self._had[number] = settings
        await self._started(child)

    async def _keep(self, number: int) -> None:
        """Start a worker again whenever it ends, with growing pauses."""
        child, pause, loop = self._children[number], FIRST_PAUSE, asyncio.get_running_loop()
        began = True
        while True:
            started = loop.time()
            status = await child.wait()
            if child in self._stopping:
                return
            if child in self._renewing:
                self._renewing.discard(child)
                began = await self._restart(number)
                continue
            if began:
                log.error("%s ended with status %d; it is started again in %.1f s", child.name, status, pause)
            self.restarts += 1
            pause = FIRST_PAUSE if loop.time() - started > PROVEN else pause
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)
            began = await self._restart(number)

    async def _restart(self, number: int) -> bool:
        """Did it begin?"""
        try:
            await self._start(number)
        except (ChildError, OSError) as error:
            log.error("%s does not start: %s", self._children[number].name, error)
            self._children[number].kill()
            return False
        return True

    async def adopt(self, generation: Generation, settings: Settings) -> None:
        """All workers judge by this from now on. ChildError when one of them refuses; the others have it then."""
        numbers = range(len(self._children))
        _raise_any(
            await asyncio.gather(*(self._adopt(number, generation, settings) for number in numbers), return_exceptions=True)
        )

    async def _adopt(self, number: int, generation: Generation, settings: Settings) -> None:
        child = self._children[number]
        if not child.running:
            return  # it starts with what is in force
        dns = None if settings == self._had[number] else settings
        try:
            await child.ask("policy", [generation.fd], PATIENCE, **_judgement(generation), dns=dns)
        except ChildGone:
            return
        except ChildSilent as error:
            log.error("%s; it is killed", error)
            child.kill()
            return
        self._had[number] = settings

    async def renew(self) -> None:
        """Start the workers anew, one after the other, with the sockets of now. What waits in a socket is served after.

        ChildError when one does not come back: the next would leave nobody to answer.
        """
        for number, child in enumerate(self._children):
            if child.running:
                self._renewing.add(child)
                self._had[number] = {}
                await child.stop()  # its keeper starts it again
                for _ in range(int(START * 100)):
                    if self._had[number]:
                        break
                    await asyncio.sleep(0.01)
                else:
                    raise ChildError(f"{child.name} does not come back with the sockets of now")

    async def stats(self) -> list[dict[str, Any]]:
        """What each worker that answers has counted."""
        answers = await asyncio.gather(*(self._stats(child) for child in self._children if child.running))
        return [answer for answer in answers if answer is not None]

    async def _stats(self, child: Child) -> dict[str, Any] | None:
        try:
            answer = await child.ask("stats", seconds=ANSWER)
        except ChildSilent as error:
            self._missed[child] += 1
            if self._missed[child] >= MISSES:
                log.error("%s, %d times in a row; it is killed", error, MISSES)
                del self._missed[child]
                child.kill()
            return None
        except ChildError:
            return None
        self._missed.pop(child, None)
        if not _is_stats(answer):
            child.kill_for("it was asked what it has counted")
            return None
        child.counts.heard(_growing(answer))
        return answer

    async def stop(self) -> None:
        self._stopping |= set(self._children)
        await asyncio.gather(*(child.stop() for child in self._children))
        for keeper in self._keepers:
            keeper.cancel()
        for keeper in self._keepers:
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        self._children.clear()
        self._keepers.clear()


def _raise_any(results: Iterable[BaseException | None]) -> None:
    """The first error of several things done at once, when all have ended."""
    for error in results:
        if error is not None:
            raise error


def _is_stats(answer: dict[str, Any]) -> bool:
    """Is this what `Resolver.stats` tells? Everybody who reads it may rely on that."""
    rows = answer.get("upstreams")
    return (
        all(map(_are_counts, map(answer.get, ("counters", "hits", "cache"))))
        and isinstance(rows, list)
        and all(isinstance(row, dict) and all(fits(row.get(key)) for key, fits in _UPSTREAM.items()) for row in rows)
    )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_WORD and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_word, value)) and all(map(_is_count, value.values()))


_UPSTREAM: dict[str, Callable[[Any], bool]] = {
    "server": _is_word, "asked": _is_count, "failed": _is_count, "healthy": lambda value: isinstance(value, bool),
    "milliseconds": lambda value: isinstance(value, int | float) and 0 <= value < math.inf,
    "last_error": lambda value: isinstance(value, str),  # may quote a certificate
}  # fmt: skip


def _growing(stats: dict[str, Any]) -> Counter[tuple[str, str]]:
    """What only grows of that, by kind and name."""
    found = Counter({
        (kind, name): count
        for kind in ("counters", "hits", "cache") for name, count in stats[kind].items() if name not in LEVELS
    })  # fmt: skip
    for row in stats["upstreams"]:  # a server may stand there for several zones
        found.update({("asked", row["server"]): row["asked"], ("failed", row["server"]): row["failed"]})
    return found


def _judgement(generation: Generation) -> dict[str, Any]:
    exempt = [(each.network, list(map(int, each.board.actions))) for each in generation.exempt]
    return {"generation": generation.number, "switchboard": list(map(int, generation.board.actions)), "exempt": exempt}
