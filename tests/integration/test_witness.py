"""A worker's reports to a guardian that does not read for a while."""

import asyncio
import os
import socket
from typing import Any

from embargo import names
from embargo.daemon.process import answered, channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Channel
from embargo.daemon.process.sightings import TO_GUARDIAN, TO_RESOLVER, Flush, Flushed
from embargo.daemon.resolve.witness import Witness
from embargo.dns.engine import Resolved
from embargo.dns.judgement import Rules

ANSWERS = 2500  # several packets of them
RULES: Any = None  # of no interest to an answer that nothing blocks


def resolved(number: int) -> Resolved:
    return Resolved(names.from_text(f"n{number}.test"), None, (number.to_bytes(4),), 300)


def test_answers_that_a_guardian_did_not_read_are_sent_before_it_gets_flushed() -> None:
    asyncio.run(tell(RULES))


async def tell(rules: Rules) -> None:
    ours, theirs = channel.pair(TO_RESOLVER)
    guardian = Channel(theirs, TO_GUARDIAN)
    page = Marks.make()
    one = Witness(lambda name, qtype: True, lambda number: None)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(ours, Marks(page))
    os.close(page)
    filled = 0
    while one._send(Flushed(0)):  # until it would block
        filled += 1
    for number in range(ANSWERS):
        assert not one.report(resolved(number), rules)
    guardian.send(Flush(7))
    await asyncio.sleep(0.05)
    for _ in range(filled):
        received = guardian.receive()
        assert received is not None
        assert received.record == Flushed(0), "and not that this was all"
    names_seen: list[str] = []
    theirs.setblocking(False)
    for _ in range(100):
        await asyncio.sleep(0.02)
        try:
            while (received := guardian.receive()) is not None:
                names_seen += [names.to_text(name) for name, _, _ in answered.unpack(received.record.records)]
        except BlockingIOError:
            if len(names_seen) >= ANSWERS:
                break
    assert names_seen == [f"n{number}.test" for number in range(ANSWERS)]
    guardian.send(Flush(8))
    await asyncio.sleep(0.05)
    received = guardian.receive()
    assert received is not None
    assert received.record == Flushed(8)
    one.stop()
    guardian.close()
