"""TCP connections by both intakes: whatever octets come in whatever pieces, the same replies, and the same state after them."""

import asyncio
import socket
from typing import Any, cast

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from embargo.daemon.process.outbox import Outbox
from embargo.daemon.resolve import intake, stream
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.stream import Connection, Group
from embargo.dns.cache import Cache
from support import twins
from support.outbox import Kept
from support.playbook import query, rules

NOW, WALL = 1000.0, 1_700_000_000.25
BLOCKED = tuple(query(name, edns=edns) for name in ("alipay.example", "pay.alipay.example") for edns in (True, False))
DECLINED = query("free.test")


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2) + message


PIECES = st.lists(
    st.one_of(
        st.sampled_from([framed(packet) for packet in (*BLOCKED, DECLINED)]),
        st.integers(1, 300).map(lambda count: framed(BLOCKED[0]) * count),
        st.integers(stream.MAX_QUERY - 20, 3 * stream.MAX_QUERY).map(lambda size: framed(DECLINED.ljust(size, b"\0"))),
        st.binary(max_size=40),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


class Visit:
    """One connection by one intake, with an engine that takes what is declined and answers nothing."""

    def __init__(self, *, full: bool) -> None:
        attempts = Attempts(cast(Outbox, Kept()))
        self.intake: Any = intake.make(Cache(), attempts)
        judgement = rules("alipay.example", acl="127.0.0.0/8")
        attempts.adopt(judgement, names=True)
        self.intake.adopt(judgement)
        self.client, ours = socket.socketpair()
        self.client.setblocking(False)
        ours.setblocking(False)
        self.connection = Connection(cast(stream.Streams, None), ours, "127.0.0.1", Group("127.0.0.1"), NOW)
        self.connection.in_flight = stream.IN_FLIGHT - 1 if full else 0
        self.seen: list[object] = []

    def go_on(self) -> None:
        """Turns until one changes nothing. The engine takes what is declined."""
        before: object = None
        while (state := self._turn()) != before:
            self.seen.append(state)
            before = state
            if self.connection.complete and self.connection.in_flight < stream.IN_FLIGHT:
                self.seen.append(self.connection.next_query())

    def _turn(self) -> tuple[object, ...]:
        stirred: list[Connection] = []
        taken, one = self.intake.converse(self.connection, NOW, WALL, stirred), self.connection
        return taken, one.unread, one.skip, one.in_flight, one.ended, one.lost, one.unsent, bool(stirred), self._received()

    def _received(self) -> bytes:
        try:
            return self.client.recv(1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.client.close()
        self.connection.sock.close()


def visited(pieces: list[bytes], *, compiled: bool, full: bool, ends: bool) -> list[object]:
    """What a connection goes through when it sends these pieces."""

    async def made() -> Visit:
        return Visit(full=full)

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        if not compiled:
            twins.without(patch)
        visit = runner.run(made())
        assert isinstance(visit.intake, intake.Intake) is not compiled
        try:
            for piece in pieces:
                visit.client.send(piece)
                visit.go_on()
            if ends:
                visit.client.shutdown(socket.SHUT_WR)
                visit.go_on()
            return visit.seen
        finally:
            visit.close()


@given(PIECES, st.integers(1, 5000), st.booleans(), st.booleans())
def test_both_intakes_answer_a_connection_alike(messages: list[bytes], size: int, full: bool, ends: bool) -> None:
    octets = b"".join(messages)
    size = max(size, len(octets) // 100)  # each takes room in the socket's buffer, which is full otherwise
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    compiled, python = (visited(pieces, compiled=compiled, full=full, ends=ends) for compiled in (True, False))
    assert compiled == python
    event(f"turns: {min(len(compiled) // 10 * 10, 100)}")
