"""The resolver processes: starts them, restarts them, and gives them each new generation.

With `workers = 0` one Resolver runs in this process instead, at the other end of the same kind of channel, so that the code
path is the same.
"""

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from embargo.daemon.host.endpoints import Sockets
from embargo.daemon.process import channel
from embargo.daemon.process.channel import Channel
from embargo.daemon.process.child import Child, ChildError, ChildGone, ChildSilent, OnEvents
from embargo.daemon.process.outbox import Account, Ledger
from embargo.daemon.process.spawn import HERE, START_SECONDS, Spawn
from embargo.daemon.resolve import resolver
from embargo.daemon.resolve.orders import (
    LEVELS,
    ORDERS,
    TELLS,
    Adopt,
    Counted,
    Flush,
    Judge,
    Judged,
    Judgement,
    Settings,
    Start,
    Stats,
    Stop,
)
from embargo.daemon.supervise.generations import Generation
from embargo.daemon.supervise.keeper import Keeper
from embargo.report import UpstreamStats

log = logging.getLogger(__name__)

ADOPT_SECONDS = 5.0  # for a worker to take a new policy; one that takes longer hangs and is killed
STATS_SECONDS = 1.5  # for its counters; plus one heartbeat interval, this is less than the rules wait for `alive`
MAX_MISSED = 3  # requests for counters that a worker may leave unanswered in a row


class Inside(Child):
    """A Resolver in this process, with the interface of a child."""

    def __init__(self, name: str, on_events: OnEvents, ledgers: str) -> None:
        super().__init__(name, "", ORDERS, on_events, ledgers, tells=TELLS)
        self._theirs: socket.socket
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0: it has no process of its own."""
        return 0

    async def start(self) -> None:
        """Start the resolver in this process."""
        ours, theirs = channel.pair(self._accepts)
        self._theirs = theirs
        account = Account(self._page)
        work = resolver.serve(Channel(theirs, ORDERS, takes=True), Ledger(account.page))
        self._task = asyncio.get_running_loop().create_task(work, name=f"keeper: {self.name}")
        self.attach(ours, account)

    async def _reap(self) -> None:
        assert self._task is not None
        await asyncio.wait([self._task])
        self._theirs.close()
        failure = None if self._task.cancelled() else self._task.exception()
        if failure is not None:
            log.error("%s failed", self.name, exc_info=failure)
        gc.collect()  # a resolver has reference cycles and holds a mapped image, which must go now
        self._finish(int(failure is not None))

    def kill(self) -> None:
        """Stop the resolver: its task is cancelled."""
        if self._task is not None:
            self._task.cancel()


class Workers:
    """`in_force` returns the generation and the settings that a worker starts with; `started` is called with each one.

    `user`: (user, group) that the workers change to; None: the user of this process.
    """

    def __init__(
        self,
        in_force: Callable[[], tuple[Generation, Settings]],
        on_events: OnEvents,
        started: Callable[[Child], Awaitable[None]],
        ledgers: str,
        spawn: Spawn = HERE,
    ) -> None:
        self._in_force = in_force
        self._started = started
        self._on_events = on_events
        self._ledgers = ledgers
        self._spawn = spawn
        self._sockets = Sockets()
        self._keepers: list[Keeper] = []
        self._settings: list[Settings | None] = []  # that each worker has; None: none yet
        self._missed: Counter[Child] = Counter()
        self._upstreams: dict[Child, tuple[UpstreamStats, ...]] = {}
        self.user: tuple[int, int] | None = None
        self.inside = False

    @property
    def uid(self) -> int:
        """The user of the workers, whose queries to upstreams pass the firewall."""
        return self.user[0] if self.user else os.geteuid()

    @property
    def children(self) -> list[Child]:
        """All workers, running or not."""
        return [keeper.child for keeper in self._keepers]

    @property
    def pids(self) -> list[int]:
        """The process ids of the running workers; 0 for one inside this process."""
        return [child.pid for child in self.children if child.running]

    @property
    def upstreams(self) -> list[UpstreamStats]:
        """The upstreams as each worker last reported them; a worker that restarts or hangs leaves no gap."""
        return [row for rows in self._upstreams.values() for row in rows]

    @property
    def restarts(self) -> int:
        """How many times workers were restarted after an unexpected end."""
        return sum(keeper.restarts for keeper in self._keepers)

    async def run(self, sockets: Sockets, count: int) -> None:
        """Start this many workers (0: one inside this process) and wait until all are ready. ChildError if one is not."""
        self._sockets = sockets
        self.inside = count == 0
        self._keepers, self._settings = [], []  # those of a start that failed have ended
        for number in range(max(count, 1)):
            name = f"resolver {number}"
            child: Child = (
                Inside(name, self._on_events, self._ledgers) if self.inside
                else Child(name, "resolver", ORDERS, self._on_events, self._ledgers, self._spawn, TELLS)
            )  # fmt: skip
            self.add(child)
        _raise_any(await asyncio.gather(*(keeper.start() for keeper in self._keepers), return_exceptions=True))

    def add(self, child: Child) -> None:
        """Add a worker, not started yet."""
        self._keepers.append(Keeper(child, partial(self._begin, len(self._keepers))))
        self._settings.append(None)

    async def _begin(self, number: int) -> None:
        child = self._keepers[number].child
        self._settings[number] = None  # so that a change meanwhile sends all settings
        await child.start()
        in_unit = self._spawn.gives_user and not self.inside
        if in_unit and child.uid != self.uid:
            log.warning(
                "%s runs as user %d, set by its unit, but [state] user is user %d; set both to the same user",
                child.name, child.uid, self.uid,
            )  # fmt: skip
            self.user = child.uid, os.getegid()
        generation, settings = self._in_force()
        sockets = list(self._sockets.of(number))
        fds = [generation.fd, *(sock.fileno() for _, sock in sockets)]
        kinds = tuple(kind for kind, _ in sockets)
        await child.ask(Start(_judgement(generation), settings, kinds, None if in_unit else self.user, self.inside), fds)
        self._settings[number] = settings
        await self._started(child)

    async def adopt(self, generation: Generation, settings: Settings) -> None:
        """Give all workers this generation. ChildError if one refuses it; the others then have the new one."""
        _raise_any(
            await asyncio.gather(
                *(self._adopt(number, generation, settings) for number in range(len(self._keepers))), return_exceptions=True
            )
        )

    async def _adopt(self, number: int, generation: Generation, settings: Settings) -> None:
        child = self._keepers[number].child
        if not child.running:
            return  # the keeper restarts it with what is in force
        changed = None if settings == self._settings[number] else settings
        self._settings[number] = None  # not known if the worker refuses
        try:
            await child.ask(Adopt(_judgement(generation), changed), [generation.fd], ADOPT_SECONDS)
        except ChildGone:
            return
        except ChildSilent as error:
            log.error("%s; killing it", error)
            child.kill()
            return
        self._settings[number] = settings

    async def renew(self) -> None:
        """Restart the workers one after the other, with the present sockets. Queries wait in the sockets meanwhile.

        ChildError if one does not come back: then the others are not restarted, so that queries are still answered.
        """
        for number, keeper in enumerate(self._keepers):
            if keeper.child.running:
                self._settings[number] = None
                await keeper.renew(Stop())
                for _ in range(int(START_SECONDS * 100)):
                    if self._settings[number] is not None:
                        break
                    await asyncio.sleep(0.01)
                else:
                    raise ChildError(f"{keeper.child.name} did not start again with the new listening sockets")

    async def stats(self) -> list[Counted]:
        """The counters of each worker that answers in time. One that repeatedly does not is killed."""
        answers = await asyncio.gather(*(self._stats(child) for child in self.children if child.running))
        return [answer for answer in answers if answer is not None]

    async def _stats(self, child: Child) -> Counted | None:
        try:
            answer = await child.ask(Stats(), seconds=STATS_SECONDS)
        except ChildSilent as error:
            self._missed[child] += 1
            if self._missed[child] >= MAX_MISSED:
                log.error("%s, %d times in a row; killing it", error, MAX_MISSED)
                del self._missed[child]
                child.kill()
            return None
        except ChildError:
            return None
        self._missed.pop(child, None)
        child.counts.update(_growing(answer))
        self._upstreams[child] = answer.upstreams
        return answer

    async def flush(self, name: str) -> int:
        """Have all workers forget what upstreams said about a name and all names below it. How many cached answers that were.

        ChildError if one does not answer. One that is not running starts with an empty cache.
        """
        flushed = await asyncio.gather(*(self._flush(child, name) for child in self.children if child.running))
        return sum(flushed)

    async def judge(self, name: str, qtype: int, client: str) -> Judged | None:
        """What the policy claims of the answer for a name, if a query of this client were for it. None if no worker tells."""
        for child in self.children:
            if child.running:
                with contextlib.suppress(ChildError):
                    judged: Judged = await child.ask(Judge(name, qtype, client))
                    return judged
        return None

    async def _flush(self, child: Child, name: str) -> int:
        try:
            return (await child.ask(Flush(name))).answers
        except ChildGone:
            return 0

    async def stop(self) -> None:
        """Stop all workers, for good."""
        for keeper in self._keepers:
            keeper.release()
        await asyncio.gather(*(keeper.stop(Stop()) for keeper in self._keepers))


def _raise_any(results: Iterable[BaseException | None]) -> None:
    """Raise the first error among the results of `asyncio.gather`."""
    for error in results:
        if error is not None:
            raise error


def _growing(stats: Counted) -> Counter[tuple[str, str]]:
    """The counters without gauges (LEVELS), by kind and name."""
    kinds = {"counters": stats.counters, "hits": stats.hits, "cache": stats.cache}
    counts = Counter({
        (kind, name): count for kind, counted in kinds.items() for name, count in counted.items() if name not in LEVELS
    })  # fmt: skip
    for row in stats.upstreams:  # a server may have a row for each of several zones
        counts.update({("asked", row.server): row.asked, ("failed", row.server): row.failed})
    return counts


def _judgement(generation: Generation) -> Judgement:
    return Judgement(generation.number, generation.board, generation.exempt)
