"""A child that is not what we started any more: it is killed, it holds up nobody, and whoever waits for it is told."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from embargo.daemon.process.channel import Events
from embargo.daemon.process.child import AT_ONCE, Child, ChildError, ChildGone
from embargo.daemon.resolve.orders import Counted, Stats, Stop
from support.child import Scripted

EVENTS = b"E" + bytes(8) + (1).to_bytes(8) + b"{}\n"


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


@pytest.mark.parametrize("number", ["0", "99", "-1"])
def test_an_answer_to_nothing_is_no_answer(tmp_path: Path, number: str) -> None:
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


def test_a_child_that_never_falls_silent_holds_up_nobody(tmp_path: Path) -> None:
    async def run() -> None:
        heard = 0

        def again(child_: Child, events: Events) -> None:
            nonlocal heard
            heard += 1
            assert heard < 100_000
            with contextlib.suppress(BrokenPipeError):
                child.theirs.send(EVENTS)

        child = Scripted(tmp_path, again)
        await child.start()
        child.theirs.send(EVENTS)
        await asyncio.sleep(0.05)
        assert heard > AT_ONCE
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


def test_all_that_a_child_said_before_its_end_is_heard_and_no_more(tmp_path: Path) -> None:
    """Also by somebody whom it left behind with its end of the channel, and also after a reset."""

    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        child.tell(Stop())
        for _ in range(3 * AT_ONCE):
            child.theirs.send(EVENTS)
        child.kill()
        await asyncio.sleep(0)
        assert await child.ends() == 9
        assert len(child.heard) == 3 * AT_ONCE
        with pytest.raises(BrokenPipeError):
            child.theirs.send(EVENTS)
        child.theirs.close()

    asyncio.run(run())


def test_whoever_waits_is_told_of_the_end_whatever_its_last_words_were(tmp_path: Path) -> None:
    async def run() -> None:
        def fails(child: Child, events: Events) -> None:
            raise RuntimeError("nobody thought of this")

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
            await child._reaper  # type: ignore[misc] # it is there: the child was started

    asyncio.run(run())
