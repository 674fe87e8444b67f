"""What a resolver that was taken over can make the guardian do: only what the policy says, and nothing without bound."""

import contextlib
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo import names
from embargo.daemon.process import answered
from embargo.daemon.process.sightings import Flush, Free, Leads, Pass, Ready
from support.guardian import ADDRESS, Guardian, flushed, heard, leads, packed
from support.hostile import send_lingering
from tools.rig import Rig, until

pytestmark = pytest.mark.root

RAW = packed()  # as it is sent, to be changed into what is none
NUMBER = (1).to_bytes(8)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:f::/48")
        made.serve_web()
        yield made


@pytest.mark.parametrize("name", ["innocent.example", "alipay.example.org", "good.alipay.example", "."])
def test_what_the_policy_does_not_block_is_not_learnt(rig: Rig, guardian: Guardian, name: str) -> None:
    """Whatever a resolver says of it."""
    guardian.apply("alipay.example", allow="good.alipay.example")
    resolver = guardian.resolver()
    resolver.send(leads(name=name))
    resolver.send(Free(1, packed(bytes([203, 0, 113, 10]))))
    assert heard(resolver) == Ready(1), "nobody is asked for more"
    assert rig.reach("client", "203.0.113.9") == "open"
    assert ADDRESS not in guardian.marks
    learning = guardian.stats().learning
    assert (learning.addresses, learning.counters["unclaimed"]) == (0, 1)
    resolver.close()


@pytest.mark.parametrize("name", ["innocent.example", "pay.alipay.example", "good.test.example", "."])
def test_what_the_allow_list_does_not_have_passes_nothing(rig: Rig, guardian: Guardian, name: str) -> None:
    guardian.apply("alipay.example", "203.0.113.9", allow="good.test")
    resolver = guardian.resolver()
    resolver.send(Pass(1, packed(name=name)))
    assert heard(resolver) == Ready(1), "the reply need not wait"
    assert rig.reach("client", "203.0.113.9") == "refused"
    assert guardian.stats().learning.counters["unallowed"] == 1
    resolver.send(Pass(2, packed(name="www.good.test")))
    assert heard(resolver) == Ready(2)
    assert rig.reach("client", "203.0.113.9") == "open"
    resolver.close()


def test_what_passes_is_bounded(guardian: Guardian) -> None:
    guardian.apply("alipay.example", allow="good.test")
    resolver = guardian.resolver()
    for number in range(5):
        many = [(0x20010DB8 << 96 | number << 32 | low).to_bytes(16) for low in range(4000)]
        resolver.send(Pass(number, answered.pack(names.from_text("www.good.test"), many, 300)))
        assert heard(resolver) == Ready(number)
    assert guardian.stats().learning.counters["passing_full"] == 1
    resolver.close()


def test_what_waits_for_the_resolvers_reports_is_bounded(guardian: Guardian) -> None:
    """The same addresses again and again, from a resolver that never says that it has reported all."""
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    many = [(203 << 24 | low).to_bytes(4) for low in range(16_000)]
    for _ in range(6):
        resolver.send(Leads(answered.pack(names.from_text("pay.alipay.example"), many, 300)))
    until(lambda: guardian.stats().learning.counters.get("crowded", 0) == 2, "the fifth and sixth are too many")
    resolver.close()


def test_the_log_blames_the_entry_of_the_policy(rig: Rig, guardian: Guardian) -> None:
    guardian.apply("first.example", "alipay.example")
    resolver = guardian.resolver()
    resolver.send(leads())
    flushed(resolver)
    until(lambda: guardian.stats().learning.addresses == 1, "it is learnt")
    assert rig.reach("client", "203.0.113.9") == "refused"
    event = guardian.event()
    assert (event["list"], event["line"], event["rule"]) == ("alipay/payment.list", 2, "alipay.example")
    resolver.close()


def test_one_round_of_questions_runs_at_a_time(rig: Rig, guardian: Guardian) -> None:
    """Else a flood of reports would be one of questions to every resolver."""
    guardian.apply("alipay.example")
    silent, busy = guardian.resolver(), guardian.resolver()
    for number in range(200):
        busy.send(leads(bytes([203, 0, 113, number])))
    asked = []
    until(lambda: guardian.stats().learning.addresses == 200, "all are learnt, the silent one notwithstanding")
    while select.select([busy.fileno()], [], [], 0)[0]:
        asked.append(heard(busy))
    assert all(isinstance(each, Flush) for each in asked)
    assert len(asked) < 20
    silent.close()
    busy.close()


def test_a_resolver_that_does_not_read_is_neither_waited_for_nor_disconnected(guardian: Guardian) -> None:
    """What it is to be told waits; what does not fit any more is counted."""
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    resolver.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 60
    while guardian.stats().learning.counters.get("unanswered", 0) == 0:
        assert time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                resolver.send(Free(sent, packed(name="free.test")))
                sent += 1
    until(lambda: guardian.stats().learning.known == 1, "all of it was taken")
    resolver.setblocking(True)
    numbers = []
    while select.select([resolver.fileno()], [], [], 0.5)[0]:
        numbers.append(heard(resolver).number)
    assert numbers == sorted(set(numbers)), "in order"
    assert len(numbers) + guardian.stats().learning.counters["unanswered"] == sent
    resolver.send(Free(1 << 40, packed(name="free.test")))
    assert heard(resolver) == Ready(1 << 40)
    resolver.close()


@pytest.mark.parametrize(
    "told",
    [
        b"L", b"L" + RAW[:-1], b"L" + RAW * 2, b"L" + RAW + b"x", b"L" + bytes.fromhex("0000012c0200010000ff00cb007109"),
        b"L" + answered._HEAD.pack(300, 1, 60_000, 0) + bytes(1) + bytes(50_000), b"F" + RAW, b"F" + NUMBER[:7], b"P" + RAW,
        b"P" + NUMBER + b"x" + RAW, b"F" + NUMBER + RAW[:-3], b"A" + RAW[:-1], b"X" + RAW, b"+" + RAW, b"=" + RAW, b"@", b"{",
        b'{"op":"Leads","packed":"00"}', b'{"op":"Stop","rules":"remove"}', b'{"op":"Use"}', b"[" * 100_000,
        b'{"op":"Flushed","number":1,"more":2}', b'{"op":"Flushed","number":"1"}',
    ],
)  # fmt: skip
def test_what_is_no_message_ends_the_conversation_with_that_resolver_alone(rig: Rig, guardian: Guardian, told: bytes) -> None:
    guardian.apply("alipay.example", "203.0.113.200")
    good, bad = guardian.resolver(), guardian.resolver()
    bad.send_packet(told)
    until(lambda: select.select([bad.fileno()], [], [], 0)[0], "it hangs up or answers")
    while (received := bad.receive()) is not None:
        assert isinstance(received.record, Ready)
        assert select.select([bad.fileno()], [], [], 10)[0]
    good.send(Free(3, packed()))
    assert heard(good) == Ready(3)
    assert rig.reach("client", "203.0.113.200") == "refused"
    good.close()
    bad.close()


def test_a_descriptor_ends_it_and_holds_nobody(guardian: Guardian) -> None:
    """Of a socket with unsent data and SO_LINGER: whoever closes it last waits for as long as the sender likes."""
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    with contextlib.suppress(OSError):  # the kernel refuses it (Linux 6.16)
        send_lingering(resolver)
        assert select.select([resolver.fileno()], [], [], 10)[0]
        assert resolver.receive() is None
    assert guardian.stats().present
    resolver.close()


def test_seconds_of_any_size_are_bounded(guardian: Guardian) -> None:
    guardian.apply("alipay.example", allow="good.test")
    resolver = guardian.resolver()
    for seconds in (10**30, 0):
        resolver.send(Pass(1, answered.pack(names.from_text("good.test"), [ADDRESS], seconds)))
        assert heard(resolver) == Ready(1)
    resolver.close()


def test_a_message_that_no_answer_can_fill_ends_the_conversation(guardian: Guardian) -> None:
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    head = answered._HEAD.pack(300, 1, (answered.MAX_ADDRESS_OCTETS + 3) // 4, 0)
    resolver.send(Pass(1, head + bytes(1) + bytes(answered.MAX_ADDRESS_OCTETS + 1)))
    assert select.select([resolver.fileno()], [], [], 10)[0]
    assert resolver.receive() is None
    resolver.close()


def test_raw_octets_end_it_too(guardian: Guardian) -> None:
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    resolver.send_packet(b"Agarbage")
    assert select.select([resolver.fileno()], [], [], 10)[0]
    assert resolver.receive() is None
    assert guardian.stats().present
    resolver.close()


def test_a_resolver_that_is_gone_is_forgotten(guardian: Guardian) -> None:
    guardian.apply("alipay.example")
    for _ in range(5):
        guardian.resolver().close()
    descriptors = Path(f"/proc/{guardian.process.pid}/fd")
    before = until(lambda: (n := len(list(descriptors.iterdir()))) and n, "counted")
    for _ in range(20):
        guardian.resolver().close()
    until(lambda: len(list(descriptors.iterdir())) <= before + 1, "none is left")
