"""What changes beside us is reloaded: files whose content is another, addresses and resolvers of the machine.

Hints say when to look; whether something is another is seen by looking, and where no hint comes a look is due all the same.
"""

import asyncio
import contextlib
from typing import Protocol

from embargo.config import Config
from embargo.daemon.host import machine, watched
from embargo.daemon.host.watch import Watch
from embargo.daemon.host.watched import Snapshot
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.reload import Outcome
from embargo.daemon.supervise.surroundings import Surroundings

STABLE = 0.25  # seconds without a change before a changed file is read: editors write in pieces
PATIENCE = 0.5  # seconds after which it is read all the same
RESCAN = 30.0  # seconds; bind and network mounts send no hints
RETRY = 5.0  # seconds until a reload is tried again that the machine was in the way of: a full disk, no descriptor left
AGAIN = "tried again"  # why: not told while the same is in the way


class Reloadable(Protocol):
    """What a follower needs of the supervisor."""

    @property
    def settings(self) -> Config: ...

    @property
    def around(self) -> Surroundings: ...

    @property
    def last(self) -> Outcome | None: ...

    async def reload(self, why: str) -> Outcome: ...


class Follower:
    def __init__(self, agent: Reloadable) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._hint = asyncio.Event()
        self._watch = Watch(self._hinted)
        self.seen: Snapshot = frozenset()

    def _hinted(self) -> None:
        self._loop.call_soon_threadsafe(self._hint.set)

    def look(self) -> Snapshot:
        """The files as they are now: what is other later is a change."""
        self.seen = self._snapshot()
        return self.seen

    def watch(self) -> None:
        """Take hints from what the configuration of now names."""
        if self._watch.follow(self._watched(), ours=self._agent.settings.log.events):
            self._hint.set()  # what changed there before it was watched

    def close(self) -> None:
        self._watch.close()

    def _snapshot(self) -> Snapshot:
        return watched.snapshot(self._watched())

    def _watched(self) -> tuple[str, ...]:
        return (*watched.paths(self._agent.settings), machine.RESOLV_CONF, machine.RESOLVED_CONF)

    async def files(self) -> None:
        """Reload when the content of a watched file is another than at the last look, and stays so for a moment."""
        self.watch()
        again = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), RETRY if self._hindered() else RESCAN)
            if self._hint.is_set():
                self._hint.clear()
                self.watch()  # what was missing may be a directory now
            now = self._snapshot()
            if now != self.seen:
                await self._stable(now)
                await self._agent.reload("files changed")
                self.watch()
            elif self._hindered() and self._loop.time() > again:
                await self._agent.reload(AGAIN)
                again = self._loop.time() + RETRY

    def _hindered(self) -> bool:
        return self._agent.last is not None and self._agent.last.hindered

    async def _stable(self, now: Snapshot) -> None:
        """Wait until whoever writes has finished, but not for ever."""
        deadline = self._loop.time() + PATIENCE
        while self._loop.time() < deadline:
            await asyncio.sleep(STABLE)
            latest = self._snapshot()
            if latest == now:
                return
            now = latest

    async def machine(self) -> None:
        """Reload when an address, a resolver or the next hop is another."""
        hints = machine.Hints()
        self._loop.add_reader(hints.fileno(), hints.drain)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hints.news.wait(), RESCAN)
            await asyncio.sleep(STABLE)  # addresses come in twos and threes
            hints.news.clear()
            try:
                changed = await asyncio.to_thread(surroundings.look, self._agent.settings) != self._agent.around
            except OSError:
                changed = True  # the reload tells what is the matter, and is tried again
            if changed:
                await self._agent.reload("the machine's addresses or resolvers changed")
