"""A compromised child: it is killed, cannot block the supervisor, and pending orders to it fail."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from embargo.daemon.process.child import MESSAGES_PER_TURN, Child, ChildError, ChildGone
from embargo.daemon.process.outbox import Ledger
from embargo.daemon.resolve.orders import Counted, Stats, Stop
from embargo.events import Event
from support.child import Scripted

ATTEMPT = b'{"schema":1,"ts":"2026-11-30T16:40:00.000000Z","event":"dns","count":1}\n'
EVENTS = b"E" + bytes(8) + (1).to_bytes(8) + ATTEMPT


@pytest.mark.parametrize("sent", [b"@", b"[" * 100_000, b"E" + bytes([255]) * 16, b'{"op":"Events","id":1}',
     b'{"op":"Done","id":[1]}', b'{"op":"Done","id":"1"}', b'{"op":"Done","id":1.5}', b'{"op":"Done","more":1,"id":1}',
     b'{"op":"Stop","id":1}', b'{"op":"Done","id":1}'])  # fmt: skip
def test_a_child_that_sends_nonsense_is_killed(tmp_path: Path, sent: bytes) -> None:
    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        question = asyncio.create_task(child.ask(Stats()))
        child.theirs.send(sent)
        assert await child.ends() == 9
        with pytest.raises(ChildError):
            await question
        assert not child.running
        child.theirs.close()

    asyncio.run(run())


FORGED = (
    b'{"schema":1,"ts":"2026-11-30T16:40:00.000000Z","event":"policy","verb":"allow","entry":"blocked.example","uid":0}\n',
    b"\x1b]0;owned\x07 not json \xff\xfe\n", b"[" * 50_000 + b"\n", b"\n", b'{"event":"drop"}\n',
)  # fmt: skip


@pytest.mark.parametrize("forged", FORGED, ids=lambda line: str(line[:12]))
def test_a_child_that_forges_an_event_is_killed(tmp_path: Path, forged: bytes) -> None:
    """What came with it is not written either, and counts as lost."""

    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        Ledger(child.account.page).write(3)
        child.theirs.send(EVENTS)
        child.theirs.send(b"E" + bytes(8) + (2).to_bytes(8) + ATTEMPT + forged)
        assert await child.ends() == 9
        assert [event["event"] for event in child.events] == ["dns"]
        assert child.lost == 2
        child.theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize("number", ["0", "99", "-1"])
def test_an_answer_without_its_order_is_ignored(tmp_path: Path, number: str) -> None:
    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        question = asyncio.create_task(child.ask(Stats()))
        await asyncio.sleep(0)
        child.theirs.send(b'{"op":"Done","id":%s}' % number.encode())
        child.theirs.send(b'{"op":"Counted","counters":{},"hits":{},"cache":{},"upstreams":[],"id":1}')
        assert await question == Counted({}, {}, {}, ())
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


def test_a_child_that_sends_without_pause_does_not_block_the_supervisor(tmp_path: Path) -> None:
    async def run() -> None:
        received = 0

        def send_another(child_: Child, told: list[Event], lost: int) -> None:
            nonlocal received
            received += 1
            assert received < 100_000
            with contextlib.suppress(BrokenPipeError):
                child.theirs.send(EVENTS)

        child = Scripted(tmp_path, send_another)
        await child.start()
        child.theirs.send(EVENTS)
        await asyncio.sleep(0.05)
        assert received > MESSAGES_PER_TURN
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


def test_messages_sent_before_the_end_are_read_and_none_sent_later(tmp_path: Path) -> None:
    """A descendant of the child may still hold its end of the channel, and the connection may have been reset."""

    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        child.tell(Stop())
        for _ in range(3 * MESSAGES_PER_TURN):
            child.theirs.send(EVENTS)
        child.kill()
        await asyncio.sleep(0)
        assert await child.ends() == 9
        assert len(child.events) == 3 * MESSAGES_PER_TURN
        with pytest.raises(BrokenPipeError):
            child.theirs.send(EVENTS)
        child.theirs.close()

    asyncio.run(run())


def test_a_pending_order_fails_at_the_end_even_if_the_last_event_cannot_be_handled(tmp_path: Path) -> None:
    async def run() -> None:
        def fails(child: Child, told: list[Event], lost: int) -> None:
            raise RuntimeError("unexpected")

        child = Scripted(tmp_path, fails)
        await child.start()
        question = asyncio.create_task(child.ask(Stats()))
        await asyncio.sleep(0)
        child.theirs.send(EVENTS)
        child.kill()
        child.theirs.close()
        with pytest.raises(ChildGone):
            await asyncio.wait_for(question, 5.0)
        assert not child.running
        with pytest.raises(RuntimeError):
            await child._reaper  # type: ignore[misc] # not None: the child was started

    asyncio.run(run())
