"""A child of the supervisor whose part the test plays."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from embargo.daemon.process import channel
from embargo.daemon.process.channel import Events
from embargo.daemon.process.child import Child
from embargo.daemon.process.outbox import Account
from embargo.daemon.resolve.orders import ORDERS


class Scripted(Child):
    """A child whose part the test plays."""

    def __init__(self, root: Path, news: Callable[[Child, Events], None] | None = None) -> None:
        self.heard: list[Events] = []
        super().__init__("resolver 0", "", ORDERS, news or (lambda child, events: self.heard.append(events)), str(root))
        self.killed = asyncio.Event()
        self.theirs: socket.socket

    async def start(self) -> None:
        ours, self.theirs = channel.pair(self._accepts)
        self.account = Account(self._page)
        self.adopt(ours, self.account)

    async def _reap(self) -> None:
        await self.killed.wait()
        self._finish(9)

    def kill(self) -> None:
        self.killed.set()

    async def ends(self) -> int:
        """Its exit status, soon."""
        return await asyncio.wait_for(self.wait(), 5.0)
