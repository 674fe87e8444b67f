"""The resolver processes: started, kept alive, moved from one generation to the next.

With `workers = 0` one Resolver runs in this process instead, at the other end of the same kind of channel, so there is no
second code path.
"""

import asyncio
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
from embargo.daemon.resolve.orders import LEVELS, ORDERS, Adopt, Counted, Judgement, Settings, Start, Stats, Stop
from embargo.daemon.supervise.generations import Generation
from embargo.daemon.supervise.keeper import Keeper

log = logging.getLogger(__name__)

ADOPT = 5.0  # seconds for a worker to take a new policy; one that takes longer hangs and is killed
ANSWER = 1.5  # seconds for what a worker has counted: with a heartbeat's pause less than the kernel waits for `alive`
MISSES = 3  # questions in a row that a worker may leave without an answer


class Inside(Child):
    """A Resolver in this process, behind the face of a child."""

    def __init__(self, name: str, on_events: OnEvents, ledgers: str) -> None:
        super().__init__(name, "", ORDERS, on_events, ledgers)
        self._theirs: socket.socket
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return 0

    async def start(self) -> None:
        ours, theirs = channel.pair(self._accepts)
        self._theirs = theirs
        account = Account(self._page)
        work = resolver.serve(Channel(theirs, ORDERS), Ledger(account.page))
        self._task = asyncio.get_running_loop().create_task(work, name=f"keeper: {self.name}")
        self.attach(ours, account)

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
    """`in_force` gives the generation and the settings that a worker starts with; `started` is called with each that has.

    `user`: (user, group) that workers become, None: ours, or their unit's.
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
        self._settings: list[Settings | None] = []  # what each worker was given last; None: nothing yet
        self._missed: Counter[Child] = Counter()
        self.user: tuple[int, int] | None = None
        self.inside = False

    @property
    def uid(self) -> int:
        """The user whose questions to upstreams pass the firewall."""
        return self.user[0] if self.user else os.geteuid()

    @property
    def children(self) -> list[Child]:
        return [keeper.child for keeper in self._keepers]

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self.children if child.running]

    @property
    def restarts(self) -> int:
        return sum(keeper.restarts for keeper in self._keepers)

    async def run(self, sockets: Sockets, count: int) -> None:
        """Start this many workers (0: one inside this process) and wait until each one answers. ChildError otherwise."""
        self._sockets = sockets
        self.inside = count == 0
        for number in range(max(count, 1)):
            name = f"resolver {number}"
            child: Child = (
                Inside(name, self._on_events, self._ledgers) if self.inside
                else Child(name, "resolver", ORDERS, self._on_events, self._ledgers, self._spawn)
            )  # fmt: skip
            self.add(child)
        _raise_any(await asyncio.gather(*(keeper.start() for keeper in self._keepers), return_exceptions=True))

    def add(self, child: Child) -> None:
        """One more worker, not started yet."""
        self._keepers.append(Keeper(child, partial(self._begin, len(self._keepers))))
        self._settings.append(None)

    async def _begin(self, number: int) -> None:
        child = self._keepers[number].child
        self._settings[number] = None  # a change meanwhile brings all of them
        await child.start()
        given = self._spawn.gives_user and not self.inside
        if given and child.uid != self.uid:
            log.warning(
                "%s runs as user %d, which its unit sets; [state] user is user %d: make them the same",
                child.name, child.uid, self.uid,
            )  # fmt: skip
            self.user = child.uid, os.getegid()
        generation, settings = self._in_force()
        mine = list(self._sockets.of(number))
        # a worker inside this process closes what it was given; the originals must stay
        fds = [generation.fd, *(sock.fileno() for _, sock in mine)]
        kinds = tuple(kind for kind, _ in mine)
        await child.ask(Start(_judgement(generation), settings, kinds, None if given else self.user, self.inside), fds)
        self._settings[number] = settings
        await self._started(child)

    async def adopt(self, generation: Generation, settings: Settings) -> None:
        """All workers judge by this from now on. ChildError when one of them refuses; the others have it then."""
        _raise_any(
            await asyncio.gather(
                *(self._adopt(number, generation, settings) for number in range(len(self._keepers))), return_exceptions=True
            )
        )

    async def _adopt(self, number: int, generation: Generation, settings: Settings) -> None:
        child = self._keepers[number].child
        if not child.running:
            return  # it starts with what is in force
        news = None if settings == self._settings[number] else settings
        try:
            await child.ask(Adopt(_judgement(generation), news), [generation.fd], ADOPT)
        except ChildGone:
            return
        except ChildSilent as error:
            log.error("%s; it is killed", error)
            child.kill()
            return
        self._settings[number] = settings

    async def renew(self) -> None:
        """Start the workers anew, one after the other, with the sockets of now. What waits in a socket is served after.

        ChildError when one does not come back: the next would leave nobody to answer.
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
                    raise ChildError(f"{keeper.child.name} does not come back with the sockets of now")

    async def stats(self) -> list[Counted]:
        """What each worker that answers has counted."""
        answers = await asyncio.gather(*(self._stats(child) for child in self.children if child.running))
        return [answer for answer in answers if answer is not None]

    async def _stats(self, child: Child) -> Counted | None:
        try:
            answer = await child.ask(Stats(), seconds=ANSWER)
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
        child.counts.update(_growing(answer))
        return answer

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.release()
        await asyncio.gather(*(keeper.stop(Stop()) for keeper in self._keepers))
        self._keepers.clear()
        self._settings.clear()


def _raise_any(results: Iterable[BaseException | None]) -> None:
    """The first error of several things done at once, when all have ended."""
    for error in results:
        if error is not None:
            raise error


def _growing(stats: Counted) -> Counter[tuple[str, str]]:
    """The counts that only grow, by kind and name."""
    kinds = {"counters": stats.counters, "hits": stats.hits, "cache": stats.cache}
    counts = Counter({
        (kind, name): count for kind, counted in kinds.items() for name, count in counted.items() if name not in LEVELS
    })  # fmt: skip
    for row in stats.upstreams:  # a server may stand there for several zones
        counts.update({("asked", row.server): row.asked, ("failed", row.server): row.failed})
    return counts


def _judgement(generation: Generation) -> Judgement:
    return Judgement(generation.number, generation.board, generation.exempt)
