"""Triggers a reload when watched files, local addresses, next hops or system resolvers change.

Notifications of the kernel only say when to compare: a reload follows if the content differs from the last time. Because
notifications may be missing, the comparison is also made at fixed intervals.
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

STABLE_SECONDS = 0.25  # without a change before a changed file is read: editors write in pieces
MAX_UNSTABLE_SECONDS = 0.5  # of changes after which the file is read anyway
RESCAN_SECONDS = 30.0  # between comparisons; bind and network mounts send no notifications
RETRY_SECONDS = 5.0  # until a reload is retried that failed for a temporary reason: full disk, no descriptors left
RETRIED = "tried again"  # the `why` of such a reload, which is logged only if its errors differ from the last ones


class Reloadable(Protocol):
    """The part of the supervisor that a Follower uses."""

    @property
    def settings(self) -> Config:
        """The configuration in force."""

    @property
    def around(self) -> Surroundings:
        """The surroundings in force."""

    @property
    def last(self) -> Outcome | None:
        """The outcome of the last reload; None before the first."""

    async def reload(self, why: str) -> Outcome:
        """Read all files and put them into effect. `why`: for the event log."""


class Follower:
    """Compares files and machine with their state at the last reload. `files` and `machine` run until they are cancelled."""

    def __init__(self, agent: Reloadable) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._hint = asyncio.Event()
        self._watch = Watch(self._hinted)
        self._seen: Snapshot = frozenset()

    def _hinted(self) -> None:
        self._loop.call_soon_threadsafe(self._hint.set)

    def look(self) -> Snapshot:
        """Take a snapshot of the files; later differences from it are changes."""
        self._seen = self._snapshot()
        return self._seen

    def watch(self) -> None:
        """Watch the files that the current configuration names."""
        if self._watch.follow(self._watched(), ours=self._agent.settings.log.events):
            self._hint.set()  # it may have changed before it was watched

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    def _snapshot(self) -> Snapshot:
        return watched.snapshot(self._watched())

    def _watched(self) -> tuple[str, ...]:
        return (*watched.paths(self._agent.settings), machine.RESOLV_CONF, machine.RESOLVED_CONF)

    async def files(self) -> None:
        """Reload when a watched file has changed since the last snapshot, once it is stable."""
        self.watch()
        retry_at = 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), RETRY_SECONDS if self._failed_temporarily() else RESCAN_SECONDS)
            if self._hint.is_set():
                self._hint.clear()
                self.watch()  # a path that was missing may be a directory now
            now = self._snapshot()
            if now != self._seen:
                await self._stable(now)
                await self._agent.reload("files changed")
                self.watch()
            elif self._failed_temporarily() and self._loop.time() > retry_at:
                await self._agent.reload(RETRIED)
                retry_at = self._loop.time() + RETRY_SECONDS

    def _failed_temporarily(self) -> bool:
        return self._agent.last is not None and self._agent.last.temporary

    async def _stable(self, now: Snapshot) -> None:
        """Wait until the files no longer change, for a limited time."""
        deadline = self._loop.time() + MAX_UNSTABLE_SECONDS
        while self._loop.time() < deadline:
            await asyncio.sleep(STABLE_SECONDS)
            latest = self._snapshot()
            if latest == now:
                return
            now = latest

    async def machine(self) -> None:
        """Reload when an address, a system resolver or a next hop of the machine changes."""
        hints = machine.Hints()
        self._loop.add_reader(hints.fileno(), hints.drain)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hints.news.wait(), RESCAN_SECONDS)
            await asyncio.sleep(STABLE_SECONDS)  # addresses change in groups
            hints.news.clear()
            try:
                changed = await asyncio.to_thread(surroundings.look, self._agent.settings) != self._agent.around
            except OSError:
                changed = True  # the reload will report the error and be retried
            if changed:
                await self._agent.reload("the machine's addresses or resolvers changed")
