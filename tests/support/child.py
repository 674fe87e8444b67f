"""A child of the supervisor that the test controls."""

import asyncio
import socket
from pathlib import Path

from embargo.daemon.process import channel
from embargo.daemon.process.child import Child, OnEvents
from embargo.daemon.process.outbox import Account
from embargo.daemon.resolve.orders import ORDERS, TELLS
from embargo.events import Event


class Scripted(Child):
    """A child without a process: the test sends and receives at its end of the channel (`theirs`) and decides when it ends."""

    def __init__(self, root: Path, on_events: OnEvents | None = None) -> None:
        self.events: list[Event] = []
        self.lost = 0
        super().__init__("resolver 0", "", ORDERS, on_events or self._note, str(root), tells=TELLS)
        self.killed = asyncio.Event()
        self.theirs: socket.socket

    def _note(self, child: Child, told: list[Event], lost: int) -> None:
        self.events += told
        self.lost += lost

    async def start(self) -> None:
        ours, self.theirs = channel.pair(self._accepts)
        self.account = Account(self._page)
        self.attach(ours, self.account)

    async def _reap(self) -> None:
        await self.killed.wait()
        self._finish(9)

    def kill(self) -> None:
        self.killed.set()

    async def ends(self) -> int:
        """Wait for its end, five seconds at most; its exit status."""
        return await asyncio.wait_for(self.wait(), 5.0)
