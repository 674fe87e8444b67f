"""A guardian process in a namespace, and this test as its supervisor and as one of its resolvers."""

import os
import select
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from embargo import names
from embargo.daemon.guard.orders import Applied, Apply, Guarded, Intactness, Meet, Stats
from embargo.daemon.process import answered, channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel, Events, Failed, Received
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.process.sightings import TO_RESOLVER, Flush, Flushed, Leads
from embargo.lists.policy import Switchboard
from embargo.records import Done
from embargo.report import AboutAddress
from support import schema
from support.playbook import compiled
from tools.rig import Rig

ADDRESS = bytes([203, 0, 113, 9])


def packed(address: bytes = ADDRESS, name: str = "pay.alipay.example") -> bytes:
    return answered.pack(names.from_text(name), [address], 300)


def leads(address: bytes = ADDRESS, name: str = "pay.alipay.example") -> Leads:
    return Leads(packed(address, name))


class Guardian:
    """A guardian process in a namespace, and this test as its supervisor and as one of its resolvers."""

    def __init__(self, rig: Rig, state: Path) -> None:
        self.channel, theirs = channel.pair((Events, Failed, Done, Applied, Intactness, AboutAddress, Guarded))
        self._ledger = Ledger.make()
        fds = [theirs.fileno(), self._ledger]
        command = [*rig.prefix("gateway"), sys.executable, "-m", "embargo.daemon.guard.guardian", *map(str, fds)]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=fds)
        self._number = 0
        self._state = state
        self.marks_fd = Marks.make()
        self.marks = Marks(self.marks_fd)

    def ask(self, order: Any, fds: list[int] | None = None) -> Any:
        self._number += 1
        self.channel.send(order, fds or [], self._number)
        while True:
            received = self.receive()
            if received.number == self._number:
                return received.record

    def receive(self, seconds: float = 20) -> Received:
        assert select.select([self.channel.fileno()], [], [], seconds)[0]
        received = self.channel.receive()
        assert received is not None, "the guardian is gone"
        return received

    def stats(self) -> Guarded:
        found = self.ask(Stats())
        assert isinstance(found, Guarded)
        return found

    def event(self) -> dict[str, Any]:
        """The next event that it hands over."""
        while True:
            record = self.receive().record
            if isinstance(record, Events) and record.lines:
                return schema.read(record.lines.splitlines()[0])

    def order(self, board: Switchboard, generation: int, **members: Any) -> Apply:
        usual = Apply(
            generation=generation, board=board, lan=(), clients=(), excepted=(), exempt=(), protected=(), own=(), system=(),
            clients_by_address={}, intercept_port=0, fail="closed", log_group=8320, ct_mark=0, protect=True, learn=True,
            memory=str(self._state),
        )  # fmt: skip
        return replace(usual, **members)

    def apply(self, *entries: str, generation: int = 1, audit: bool = False, allow: str = "", **members: Any) -> Any:
        octets, board = compiled(*entries, audit=audit, allow=allow)
        with tempfile.TemporaryFile(buffering=0) as file:
            file.write(octets)
            return self.ask(self.order(board, generation, **members), [file.fileno()])

    def resolver(self) -> Channel:
        ours, theirs = channel.pair(TO_RESOLVER)
        with theirs:
            assert self.ask(Meet(), [theirs.fileno(), self.marks_fd]) == Done()
        return ours

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()
        os.close(self._ledger)
        os.close(self.marks_fd)


def flushed(resolver: Channel) -> None:
    """Be asked for what is still held back, and say that it was sent."""
    asked = heard(resolver)
    assert isinstance(asked, Flush)
    resolver.send(Flushed(asked.number))


def heard(from_: Channel) -> Any:
    assert select.select([from_.fileno()], [], [], 10)[0]
    received = from_.receive()
    assert received is not None
    return received.record
