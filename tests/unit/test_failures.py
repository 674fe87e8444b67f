"""Failures are remembered for a moment: SERVFAIL, REFUSED, malformed answers, silence and errors of the network (RFC 9520)."""

from collections.abc import Callable

import dns.message
import dns.rcode
import pytest

from embargo import names
from embargo.dns import message
from embargo.dns.failures import FIRST, GOES_ON, LONGEST, MAX_QUESTIONS, Failures, Trouble
from embargo.dns.questions import MAX_PENDING
from embargo.dns.upstream import Server, Strip, Upstreams
from embargo.dns.zones import Zones
from support.playbook import SERVERS, Play, answer, play, rules

A, B = SERVERS
WHY = Trouble(23, "A answered SERVFAIL")


def test_a_failure_is_remembered_for_longer_when_it_goes_on() -> None:
    failures, now, seconds = Failures(), 100.0, list[float]()
    for _ in range(6):
        failures.note(b"key", [A], WHY, now)
        current = failures.current(b"key", now)
        assert current is not None
        seconds.append(current.until - now)
        now = current.until
        assert failures.current(b"key", now) is None
    assert seconds == [FIRST, 2 * FIRST, 4 * FIRST, LONGEST, LONGEST, LONGEST]
    failures.note(b"key", [A], WHY, now + GOES_ON)
    assert failures.current(b"key", now + GOES_ON + FIRST) is None, "it had stopped"


def test_an_answer_ends_the_failure_of_its_server() -> None:
    failures = Failures()
    failures.note(b"key", [A, B], WHY, 100.0)
    failures.answered(b"other", A)
    failures.answered(b"key", A)
    current = failures.current(b"key", 100.5)
    assert current is not None
    assert current.servers == {B}
    failures.answered(b"key", B)
    assert (failures.current(b"key", 100.5), len(failures)) == (None, 0)


def test_failures_are_bounded_and_the_oldest_is_forgotten() -> None:
    failures = Failures()
    for number in range(MAX_QUESTIONS + 10):
        failures.note(number.to_bytes(4), [A], WHY, 100.0)
    assert len(failures) == MAX_QUESTIONS
    assert failures.current((9).to_bytes(4), 100.0) is None
    assert failures.current((10).to_bytes(4), 100.0) is not None


# ── in the engine ────────────────────────────────────────────────────────────────────────────────────────────────────────

#: a record whose length is not that of its type
BROKEN = answer("free.test", "A", "192.0.2.1").to_wire().replace(b"\0\4\xc0\0\2\1", b"\0\3\xc0\0\2")


def said(sent: dns.message.Message | bytes) -> Callable[[Play], Play]:
    return lambda found: found.upstream(sent)


KINDS: dict[str, Callable[[Play], Play]] = {
    "SERVFAIL": said(answer("free.test", rcode=dns.rcode.SERVFAIL)),
    "REFUSED": said(answer("free.test", rcode=dns.rcode.REFUSED)),
    "malformed": said(BROKEN),
    "silence": Play.silence,
    "network": Play.unreachable,
}


def failed(found: Play, kind: str, name: str = "free.test") -> Play:
    """A question about which all servers fail in this way."""
    found.query(name).is_forwarded()
    while found.forward is not None and found.engine.pending:
        KINDS[kind](found)
    return found.replies(rcode=dns.rcode.SERVFAIL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_that_failed_is_not_asked_again_for_a_moment(kind: str) -> None:
    found = failed(play(), kind)
    code = found.ede()
    for _ in range(3):
        found.query("free.test").forwards_nothing().replies(rcode=dns.rcode.SERVFAIL)
        assert found.ede() == code, "the reason is remembered too"
    found.query("other.test").is_forwarded()
    found.query("free.test", "AAAA").is_forwarded()
    failed(found.later(FIRST), kind).later(FIRST).query("free.test").replies(rcode=dns.rcode.SERVFAIL)
    found.later(FIRST).query("free.test").is_forwarded()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_failed_is_not_asked_the_same_again_while_another_one_can_answer(kind: str) -> None:
    made = answer("free.test", "A", "192.0.2.1", ttl=0)
    found = KINDS[kind](play().query("free.test").is_forwarded(A)).is_forwarded(B).upstream(made).replies("192.0.2.1")
    found.engine.zones.default.health[A].until = 0.0
    found.query("free.test").is_forwarded(B).upstream(made).replies("192.0.2.1").query("other.test").is_forwarded(A)
    found.later(FIRST).query("free.test").is_forwarded(A).upstream(made).query("free.test").is_forwarded(A)


def test_when_the_second_server_fails_too_the_question_has_failed() -> None:
    servfail = answer("free.test", rcode=dns.rcode.SERVFAIL)
    found = play().query("free.test").upstream(servfail).upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
    found.query("free.test").is_forwarded(B).upstream(servfail).replies(rcode=dns.rcode.SERVFAIL)
    found.query("free.test").forwards_nothing().replies(rcode=dns.rcode.SERVFAIL)


def test_a_late_answer_ends_the_failure() -> None:
    found = failed(play(), "silence").late(answer("free.test", "A", "192.0.2.1", ttl=0))
    found.query("free.test").is_forwarded()


def test_an_expired_answer_comes_before_the_remembered_failure() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=60)).later(61)
    found.query("free.test")
    while found.forward is not None and found.engine.pending:
        found.upstream(answer("free.test", rcode=dns.rcode.SERVFAIL))
    found.replies("192.0.2.1").query("free.test").forwards_nothing().replies("192.0.2.1")
    assert found.ede() == 3


def test_nothing_is_refreshed_or_looked_up_behind_a_block_while_that_fails() -> None:
    found = failed(play(), "SERVFAIL")
    key = message.own_query(names.from_text("free.test"), message.A).key
    found.engine.cache.wanted = [key]
    assert found.engine.refresh(found.now) == []
    assert found.engine.look_behind(names.from_text("free.test"), message.A, found.now) is None
    found.later(FIRST)
    assert found.engine.look_behind(names.from_text("free.test"), message.A, found.now) is not None


def test_other_servers_know_nothing_of_failures() -> None:
    found = failed(play(), "SERVFAIL").adopt(rules(number=2), Zones(Upstreams((Server("192.0.2.60", 53),), Strip(ech=True))))
    found.query("free.test").is_forwarded()


def test_a_question_that_gave_way_to_others_has_not_failed() -> None:
    found = play().query("free.test")
    for number in range(MAX_PENDING):
        found.query(f"n{number}.test").is_forwarded()
    (reply,) = found.engine.give_up(found.now)
    assert dns.message.from_wire(reply.wire).rcode() == dns.rcode.SERVFAIL
    found.query("free.test").is_forwarded()
