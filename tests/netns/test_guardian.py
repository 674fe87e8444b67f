"""The guardian by itself: what resolvers tell it is bounded and checked, its orders are carried out in a kernel of its own."""

import contextlib
import re
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from embargo import names
from embargo.daemon.guard.orders import Applied, Intact, Intactness
from embargo.daemon.process import answered
from embargo.daemon.process.channel import Answered, Received
from embargo.daemon.process.sightings import Flushed, Free, Leads, Pass, Ready
from embargo.report import Spared
from support import schema
from support.guardian import ADDRESS, Guardian, flushed, heard, leads, packed
from support.playbook import compiled
from tools.rig import Rig, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:f::/48")
        made.serve_web()
        yield made


def test_an_address_is_learnt_marked_freed_and_acknowledged(rig: Rig, guardian: Guardian) -> None:
    assert guardian.apply("alipay.example") == Applied(0)
    resolver = guardian.resolver()
    assert ADDRESS not in guardian.marks
    resolver.send(leads())
    flushed(resolver)
    assert guardian.stats().learning.addresses == 1
    assert ADDRESS in guardian.marks
    assert rig.reach("client", "203.0.113.9") == "refused"
    resolver.send(Free(7, packed(name="free.test")))
    assert heard(resolver) == Ready(7)
    assert ADDRESS not in guardian.marks
    assert rig.reach("client", "203.0.113.9") == "open"
    resolver.close()


def test_whoever_was_answered_with_an_address_before_is_heard_before_it_is_blocked(rig: Rig, guardian: Guardian) -> None:
    """Two resolvers: one gave an unblocked name's answer and has not told yet, the other found a blocked name leads there."""
    guardian.apply("alipay.example")
    first, second = guardian.resolver(), guardian.resolver()
    second.send(leads())
    flushed(second)
    until(lambda: ADDRESS in guardian.marks, "who answers with it from now on waits")
    assert rig.reach("client", "203.0.113.9") == "open"
    asked = heard(first)
    first.send(Answered(packed(name="neighbour.test")))
    first.send(Flushed(asked.number))
    until(lambda: ADDRESS not in guardian.marks, "it stays open")
    learning = guardian.stats().learning
    assert (learning.addresses, learning.counters) == (0, {"shared": 1})
    assert learning.spared == (Spared("203.0.113.9", "pay.alipay.example", "neighbour.test"),)
    assert rig.reach("client", "203.0.113.9") == "open"
    first.close()
    second.close()


@pytest.mark.parametrize("silent", ["stopped", "gone"])
def test_a_resolver_that_says_nothing_holds_up_no_block(rig: Rig, guardian: Guardian, silent: str) -> None:
    guardian.apply("alipay.example")
    first, second = guardian.resolver(), guardian.resolver()
    second.send(leads())
    flushed(second)
    if silent == "gone":
        first.close()
    until(lambda: guardian.stats().learning.addresses == 1, "it is learnt")
    assert rig.reach("client", "203.0.113.9") == "refused"
    first.close()
    second.close()


def test_what_is_marked_for_a_decision_stays_so_while_others_are_freed(rig: Rig, guardian: Guardian) -> None:
    guardian.apply("alipay.example")
    first, second = guardian.resolver(), guardian.resolver()
    other = bytes([203, 0, 113, 10])
    second.send(leads(other))
    flushed(first)
    flushed(second)
    second.send(leads())
    flushed(second)
    second.send(Free(1, packed(other, "free.test")))
    assert heard(second) == Ready(1)
    assert ADDRESS in guardian.marks
    until(lambda: other not in guardian.marks, "nobody waits for the other one any more")
    flushed(first)
    assert guardian.stats().learning.addresses == 1
    assert ADDRESS in guardian.marks
    first.close()
    second.close()


def test_all_addresses_of_an_answer_are_learnt_freed_and_let_through(rig: Rig, guardian: Guardian) -> None:
    """As many as a DNS message can hold."""
    guardian.apply("alipay.example", "203.0.113.9", allow="good.test")
    resolver = guardian.resolver()
    many = [(100 << 24 | n).to_bytes(4) for n in range(8000)] + [(0x20010DB8000F << 80 | n).to_bytes(16) for n in range(1700)]
    blocked, free = (answered.pack(names.from_text(name), many, 300) for name in ("pay.alipay.example", "free.test"))
    resolver.send(Leads(blocked))
    flushed(resolver)
    assert guardian.stats().learning.addresses == len(many)
    resolver.send(Free(1, free))
    assert heard(resolver) == Ready(1)
    assert guardian.stats().learning.addresses == 0
    assert rig.reach("client", "203.0.113.9") == "refused"
    resolver.send(Pass(2, answered.pack(names.from_text("good.test"), [*many, ADDRESS], 300)))
    assert heard(resolver) == Ready(2)
    assert rig.reach("client", "203.0.113.9") == "open"
    resolver.close()


def test_a_learnt_address_waits_for_no_bulk_load(rig: Rig, guardian: Guardian) -> None:
    """While a large generation is laid down in steps, what a resolver tells is in force before the load is through."""
    guardian.apply("alipay.example")
    resolver = guardian.resolver()
    octets, board = compiled("alipay.example", *(f"2001:db8:f::{2 * n:x}" for n in range(30_000)))
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(octets)
        guardian.channel.send(guardian.order(board, 2), [file.fileno()], 99)
    guardian.channel.send(Intact(), number=100)
    resolver.send(Free(1, packed(bytes([203, 0, 113, 77]))))
    assert heard(resolver) == Ready(1)
    answers: list[Received] = []
    while len(answers) < 2:
        received = guardian.receive(30)
        answers += [received] if received.number in (99, 100) else []
    assert [answer.number for answer in answers] == [100, 99], "whether it lives is answered meanwhile"
    assert answers[0].record == Intactness(True)
    assert isinstance(answers[1].record, Applied)
    assert rig.reach("client", "2001:db8:f::2") == "refused"
    assert rig.reach("client", "2001:db8:f::3") == "open"
    event = guardian.event()
    assert (event["dst"], event["app"], event["function"], event["line"]) == ("2001:db8:f::2", "alipay", "payment", 3), (
        "it stands in a set with many others, and the guardian knows whose it is"
    )
    assert guardian.stats().hits == {"alipay/payment": 1}
    resolver.close()


def test_packets_that_a_record_tells_of_are_told_once_whatever_is_applied_meanwhile(rig: Rig, guardian: Guardian) -> None:
    guardian.apply("alipay.example", "203.0.113.200")
    with rig.socket("client", socket.SOCK_DGRAM, "203.0.113.200") as sock:
        for generation in (2, 3, 4):
            for _ in range(20):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"x", ("203.0.113.200", 9))
            guardian.apply("alipay.example", "203.0.113.200", generation=generation)
    time.sleep(1.0)
    heard = []
    while select.select([guardian.channel.fileno()], [], [], 0)[0]:
        heard += [schema.read(line) for line in guardian.receive().record.lines.splitlines()]
    assert not [event for event in heard if event.get("unlogged")]
    counted = rig.run("gateway", "nft", "list", "counter", "inet", "embargo", "alipay_payment").stdout
    assert guardian.stats().noted == int(re.findall(r"packets (\d+)", counted)[0]) >= 50


@pytest.mark.parametrize("audit", [False, True], ids=["block", "audit"])
def test_connections_to_what_is_blocked_are_deleted_and_to_what_is_only_logged_are_not(
    rig: Rig, guardian: Guardian, audit: bool
) -> None:
    tracked: dict[str, Any] = {"lan": ("lan0",), "intercept_port": 53, "ct_mark": 0xFF00_0000}
    guardian.apply("alipay.example", audit=audit, **tracked)
    with (
        rig.socket("client", socket.SOCK_STREAM, "203.0.113.9") as flow,
        rig.socket("client", socket.SOCK_STREAM, "::") as other,
    ):
        for sock, address in ((flow, "203.0.113.9"), (other, "2001:db8:3::9")):
            sock.settimeout(5)
            sock.connect((address, 443))
            sock.sendall(b"before")
            assert sock.recv(64) == b"before"
        guardian.apply("alipay.example", "203.0.113.9", audit=audit, generation=2, **tracked)
        if audit:
            time.sleep(0.5)
            flow.sendall(b"after")
            assert flow.recv(64) == b"after"
        else:
            until(lambda: guardian.stats().cut == 1, "its connection is deleted")
            with pytest.raises(ConnectionResetError):  # noqa: PT012  # some packet of them
                for _ in range(20):
                    flow.sendall(b"after")
                    assert flow.recv(64)
        assert guardian.stats().cut == (0 if audit else 1)
        other.sendall(b"after")
        assert other.recv(64) == b"after"


def test_connections_to_an_address_that_an_allowed_name_led_to_stay(rig: Rig, guardian: Guardian) -> None:
    tracked: dict[str, Any] = {"lan": ("lan0",), "intercept_port": 53, "ct_mark": 0xFF00_0000}
    guardian.apply("alipay.example", "203.0.113.9", allow="good.test", **tracked)
    resolver = guardian.resolver()
    resolver.send(Pass(1, packed(name="good.test")))
    assert heard(resolver) == Ready(1)
    with rig.socket("client", socket.SOCK_STREAM, "203.0.113.9") as flow:
        flow.settimeout(5)
        flow.connect(("203.0.113.9", 443))
        time.sleep(0.5)
        before = guardian.stats().cut  # what other tests left
        guardian.apply("alipay.example", "203.0.113.9", allow="good.test", generation=2, **tracked)
        time.sleep(0.5)
        flow.sendall(b"after")
        assert flow.recv(64) == b"after"
        assert guardian.stats().cut == before
    resolver.close()
