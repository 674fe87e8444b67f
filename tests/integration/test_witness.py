"""A worker's reports to a guardian that does not read for a while."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from embargo import names
from embargo.daemon.process import answered, channel
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Answered, Channel
from embargo.daemon.process.sightings import TO_GUARDIAN, TO_RESOLVER, Flush, Flushed, Free, Leads
from embargo.daemon.resolve import witness as witness_
from embargo.daemon.resolve.witness import Witness
from embargo.dns.engine import Resolved
from embargo.lists.policy import Decision
from embargo.names import Name
from support.playbook import rules

ANSWERS = 2500  # several packets of them
BLOCKED = "alipay.example"
ADDRESS = bytes([203, 0, 113, 9])
RULES: Any = None  # of no interest to an answer that nothing blocks


def resolved(number: int) -> Resolved:
    return Resolved(names.from_text(f"n{number}.test"), None, (number.to_bytes(4),), 300)


class Guardian:
    """A witness, and the other end of its channel, which reads when the test says so."""

    def __init__(self) -> None:
        ours, theirs = channel.pair(TO_RESOLVER)
        self.channel = Channel(theirs, TO_GUARDIAN)
        self.channel.setblocking(False)
        self.looked_up: list[str] = []
        page = Marks.make()
        self.witness = Witness(self._look_up, lambda number: None)
        self.witness.connect(ours, Marks(page))
        os.close(page)

    def _look_up(self, name: Name, qtype: int) -> bool:
        self.looked_up.append(names.to_text(name))
        return True

    def fill(self) -> int:
        """Send until the channel takes no more; how many it took."""
        filled = 0
        while not self.witness._backlog or not self.witness._backlog.octets:
            self.witness._send(Flushed(0))
            filled += 1
        return filled

    async def read(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """Everything up to the record that is wanted."""
        found: list[Any] = []
        deadline = time.monotonic() + 20
        while not found or not wanted(found[-1]):
            assert time.monotonic() < deadline, found[-3:]
            try:
                received = self.channel.receive()
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            assert received is not None
            found.append(received.record)
        return found

    def close(self) -> None:
        self.witness.stop()
        self.channel.close()


def told(records: list[Any], kind: type[Answered] | type[Leads]) -> list[str]:
    """The names in records of this type."""
    return [names.to_text(name) for each in records if isinstance(each, kind) for name, _, _ in answered.unpack(each.packed)]


def test_what_a_guardian_did_not_read_is_sent_in_order_when_it_reads() -> None:
    """Answers before the word that these were all, and nothing is lost."""

    async def run() -> None:
        guardian = Guardian()
        filled = guardian.fill()
        for number in range(ANSWERS):
            assert not guardian.witness.report(resolved(number), RULES)
        guardian.channel.send(Flush(7))
        await asyncio.sleep(0.05)
        found = await guardian.read(lambda record: record == Flushed(7))
        assert found[:filled] == [Flushed(0)] * filled
        assert told(found, Answered) == [f"n{number}.test" for number in range(ANSWERS)]
        assert guardian.witness.counters["untold"] == 0
        guardian.close()

    asyncio.run(run())


def test_what_does_not_fit_any_more_is_counted_and_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_, "MAX_UNSENT", 20_000)

    async def run() -> None:
        guardian = Guardian()
        guardian.fill()
        for number in range(ANSWERS):
            guardian.witness.report(resolved(number), RULES)
        guardian.channel.send(Flush(7))
        await asyncio.sleep(0.05)
        assert guardian.witness.counters["untold"] > 0
        guardian.witness.report(resolved(ANSWERS - 1), RULES)
        found = await guardian.read(
            lambda record: isinstance(record, Answered) and f"n{ANSWERS - 1}.test" in told([record], Answered)
        )
        assert Flushed(7) not in found, "some of it was lost, so that was not all"
        guardian.channel.send(Flush(8))
        await guardian.read(lambda record: record == Flushed(8))
        guardian.close()

    asyncio.run(run())


def led(number: int, decision: Decision, address: bytes = ADDRESS) -> Resolved:
    return Resolved(names.from_text(f"n{number}.{BLOCKED}"), decision, (address,), 60)


def test_addresses_behind_a_blocked_name_are_told_once_for_some_names_of_an_entry() -> None:
    """A stranger's names may lead to a blocked one: 3,000 a second of them must not become as many messages."""
    judged = rules(BLOCKED, "other.example")
    first, other = (judged.image.lookup(names.from_text(name))[0] for name in (BLOCKED, "other.example"))

    async def run() -> None:
        guardian = Guardian()
        for number in range(3000):
            assert not guardian.witness.report(led(number, first), judged)
        for number in range(3):
            guardian.witness.report(led(number, other), judged)
        guardian.witness.report(led(0, first, bytes([203, 0, 113, 10])), judged)
        guardian.witness.request_free(5, resolved(1))
        found = await guardian.read(lambda record: isinstance(record, Free))
        assert told(found, Leads) == [f"n{number}.{BLOCKED}" for number in (0, 1, 2, 3, 0, 1, 2, 0)]
        guardian.close()

    asyncio.run(run())


def test_a_blocked_name_whose_addresses_could_not_be_told_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness_, "MAX_UNSENT", 100)
    monkeypatch.setattr(witness_, "FIRST_RETRY", 0.05)
    judged = rules(BLOCKED)
    (decision,) = judged.image.lookup(names.from_text(BLOCKED))

    async def run() -> None:
        guardian = Guardian()
        guardian.witness.learning = True
        guardian.fill()
        found = led(0, decision)
        guardian.witness.watch([found.name])
        while not guardian.looked_up:
            await asyncio.sleep(0.01)
        for number in range(10):
            guardian.witness.report(led(number, decision, bytes([203, 0, 113, number])), judged)
        guardian.witness.report(found, judged)
        assert guardian.witness.counters["untold"] > 0
        seen, deadline = len(guardian.looked_up), time.monotonic() + 20
        while len(guardian.looked_up) == seen:
            assert time.monotonic() < deadline, "it is not looked up again"
            await asyncio.sleep(0.01)
        guardian.close()

    asyncio.run(run())


def test_a_look_up_without_addresses_is_repeated_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been lost in a flood. Its answer comes to `report`, and then its TTL decides."""
    monkeypatch.setattr(witness_, "FIRST_RETRY", 0.02)
    judged = rules(BLOCKED)
    (decision,) = judged.image.lookup(names.from_text(BLOCKED))

    async def run() -> None:
        guardian = Guardian()
        guardian.witness.learning = True
        found, started, times = led(0, decision), time.monotonic(), []
        guardian.witness.watch([found.name])
        while len(guardian.looked_up) < 10:  # two types each time
            await asyncio.sleep(0.001)
            times.append(time.monotonic() - started)
        assert times[-1] > 0.02 + 0.04 + 0.08 + 0.16
        guardian.witness.report(found, judged)
        assert guardian.witness._watched[found.name].due > time.monotonic() + witness_.MIN_INTERVAL - 5
        guardian.close()

    asyncio.run(run())


def test_a_flood_of_names_below_one_does_not_keep_others_from_being_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 random names a second of one client, and no address behind other blocked names was learnt."""
    monkeypatch.setattr(witness_, "BURST_SECONDS", 0.01)
    monkeypatch.setattr(witness_, "MAX_WATCHED", 60)

    async def run() -> None:
        guardian = Guardian()
        guardian.witness.learning = True
        guardian.witness.watch([names.from_text("pay.tenpay.test")])
        guardian.witness.watch([names.from_text(f"n{number}.{BLOCKED}") for number in range(200)])
        guardian.witness.watch([names.from_text("www.tenpay.test")])
        deadline = time.monotonic() + 20
        while len(set(guardian.looked_up)) < 20:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        first = list(dict.fromkeys(guardian.looked_up))
        assert first.index("pay.tenpay.test") <= witness_.BURST
        assert first.index("www.tenpay.test") <= witness_.BURST
        assert len(guardian.witness._watched) == 60
        guardian.close()

    asyncio.run(run())


def silent(look_up: Callable[[Name, int], bool]) -> Witness:
    """A witness that is connected, whose timer is not set: the test calls its turns."""
    found = Witness(look_up, lambda number: None)
    found.learning, found._channel = True, cast(Channel, object())
    found._schedule = lambda: None  # type: ignore[method-assign] # the test calls `_look_up_due`
    return found


def test_the_root_name_is_looked_up_as_any_other() -> None:
    async def run() -> None:
        witness = silent(lambda *_: True)
        witness.watch([names.ROOT])
        witness._look_up_due()
        assert witness.counters["looked_up"] == 1

    asyncio.run(run())


def test_a_look_up_that_raises_does_not_end_the_look_ups() -> None:
    seen: list[Name] = []

    def look_up(name: Name, _: int) -> bool:
        seen.append(name)
        if len(seen) == 1:
            raise ValueError("a fault")
        return True

    async def run() -> None:
        guardian = Guardian()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        guardian.witness._look_up, guardian.witness.learning = look_up, True
        guardian.witness.watch([names.from_text(f"n{number}.test") for number in range(2)])
        async with asyncio.timeout(20):
            while len(set(seen)) < 2 or len(seen) < 5:  # the failed one again, too
                await asyncio.sleep(0.01)
        guardian.close()

    asyncio.run(run())


def test_reports_of_a_name_neither_fill_memory_nor_put_its_look_up_off_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that asks for an alias of a blocked name all the time reports it all the time."""
    judged = rules(BLOCKED)
    (decision,) = judged.image.lookup(names.from_text(BLOCKED))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now)
        witness = silent(lambda *_: True)
        monkeypatch.setattr(witness, "_send", lambda _: True)
        found = led(0, decision)
        witness.watch([found.name])
        for _ in range(1000):
            witness._look_up_due()
            witness.report(found, judged)
            assert len(witness._due) + len(witness._turns) <= 3
            now += 1.0
        assert witness.counters["looked_up"] == 4, "after MAX_INTERVAL each time"

    asyncio.run(run())
