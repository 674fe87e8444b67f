"""The resolver processes: started, kept alive, moved from one generation to the next.

With `workers = 0` one Resolver runs in this process instead, at the other end of the same kind of channel, so there is no
second code path.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from embargo.daemon import channel, resolver
from embargo.daemon.channel import Channel
from embargo.daemon.child import Child, ChildError, News
from embargo.daemon.endpoints import Sockets
from embargo.daemon.generations import Generation

log = logging.getLogger(__name__)

FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0  # seconds before a worker that died is started again; doubled per death in a row
PROVEN = 30.0  # seconds after which a death counts as the first one again

Settings = dict[str, Any]  # what a resolver needs of the configuration


class Inside(Child):
    """A Resolver in this process, behind the face of a child."""

    def __init__(self, name: str, news: News) -> None:
        super().__init__(name, "", news)
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return 0

    async def start(self) -> None:
        ours, theirs = channel.pair()
        self.adopt(ours)
        self._task = asyncio.get_running_loop().create_task(resolver.serve(Channel(theirs)), name=self.name)

    async def wait(self) -> int:
        assert self._task is not None
        await asyncio.wait([self._task])
        self.finish()
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            log.error("%s failed: %r", self.name, error)
            return 1
        return 0

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Workers:
    """`in_force` tells the generation and the settings that a worker starts with."""

    def __init__(self, in_force: Callable[[], tuple[Generation, Settings]], news: News) -> None:
        self._in_force = in_force
        self._news = news
        self._sockets = Sockets()
        self._children: list[Child] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._had: list[Settings] = []  # the settings that each worker has
        self._stopping: set[Child] = set()
        self._renewing: set[Child] = set()
        self.user: tuple[int, int] | None = None
        self.inside = False
        self.restarts = 0

    @property
    def sockets(self) -> Sockets:
        return self._sockets

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children if child.running]

    async def run(self, sockets: Sockets, count: int) -> None:
        """Start this many workers (0: one inside this process) and wait until each one answers. ChildError otherwise."""
        self._sockets = sockets
        self.inside = count == 0
        for number in range(max(count, 1)):
            name = f"resolver {number}"
            child: Child = Inside(name, self._news) if self.inside else Child(name, "embargo.daemon.resolver", self._news)
            self._children.append(child)
            self._had.append({})
            await self._start(number)
            keeper = asyncio.get_running_loop().create_task(self._keep(number), name=f"keeper of {name}")
            self._keepers.append(keeper)

    async def _start(self, number: int) -> None:
        child = self._children[number]
        await child.start()
        generation, settings = self._in_force()
        mine = list(self._sockets.of(number))
        # a worker inside this process closes what it was given; the originals must stay
        fds = [generation.fd, *(sock.fileno() for _, sock in mine)]
        await child.ask(
            "start", fds, generation=generation.number, switchboard=list(map(int, generation.board.actions)), dns=settings,
            sockets=[kind for kind, _ in mine], user=None if self.inside else self.user, inside=self.inside,
        )  # fmt: skip
        self._had[number] = settings

    async def _keep(self, number: int) -> None:
        """Start a worker again whenever it ends, with growing pauses."""
        child, pause, loop = self._children[number], FIRST_PAUSE, asyncio.get_running_loop()
        while True:
            started = loop.time()
            status = await child.wait()
            if child in self._stopping:
                return
            if child in self._renewing:
                self._renewing.discard(child)
                await self._restart(number)
                continue
            log.error("%s ended with status %d; it is started again in %.1f s", child.name, status, pause)
            self.restarts += 1
            pause = FIRST_PAUSE if loop.time() - started > PROVEN else pause
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)
            await self._restart(number)

    async def _restart(self, number: int) -> None:
        try:
            await self._start(number)
        except (ChildError, OSError) as error:
            log.error("%s does not start: %s", self._children[number].name, error)
            self._children[number].kill()

    async def adopt(self, generation: Generation, settings: Settings) -> None:
        """All workers judge by this from now on. ChildError when one of them refuses; the others have it then."""
        results = await asyncio.gather(
            *(self._adopt(number, generation, settings) for number in range(len(self._children))), return_exceptions=True
        )
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _adopt(self, number: int, generation: Generation, settings: Settings) -> None:
        child = self._children[number]
        if not child.running:
            return  # it starts with what is in force
        dns = None if settings == self._had[number] else settings
        board = list(map(int, generation.board.actions))
        try:
            await child.ask("policy", [generation.fd], generation=generation.number, switchboard=board, dns=dns)
        except ChildError:
            if child.running:
                raise
            return
        self._had[number] = settings

    async def renew(self) -> None:
        """Start the workers anew, one after the other, with the sockets of now. What waits in a socket is served after."""
        for child in self._children:
            if child.running:
                self._renewing.add(child)
                await child.stop()  # its keeper starts it again
                for _ in range(500):
                    if child.running:
                        break
                    await asyncio.sleep(0.01)

    async def stats(self) -> list[dict[str, Any]]:
        """What each worker that answers has counted."""
        answers = await asyncio.gather(
            *(child.ask("stats", seconds=2.0) for child in self._children if child.running), return_exceptions=True
        )
        return [answer for answer in answers if isinstance(answer, dict)]

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
