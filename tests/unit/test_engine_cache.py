"""Answers from the cache: live ones, expired ones when no upstream answers (RFC 8767), and those renewed before they expire."""

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from embargo import names
from embargo.dns import engine, fastpath, message
from embargo.dns.acl import Acl
from embargo.dns.cache import RETRY, STALE_TTL
from embargo.dns.engine import STALE_AFTER, Joined, Settled
from embargo.dns.judgement import Rules
from embargo.dns.message import Answer, Query
from embargo.dns.screening import Screened, screen
from embargo.dns.upstream import Server, Upstreams
from embargo.dns.zones import Zones
from support.playbook import SERVERS, Play, answer, play, rules

BLOCKED = "alipay.example"


# ── cache ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cached_answer_ages_and_is_asked_for_again_when_it_has_expired() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=100))
    assert found.later(40).query("FREE.test").forwards_nothing().reply.answer[0].ttl == 60
    assert str(found.reply.question[0].name) == "FREE.test."
    found.later(61).query("free.test").is_forwarded()


def test_a_negative_answer_is_kept_for_the_soas_minimum() -> None:
    made = answer("none.test", "A", rcode=3)
    made.authority.append(dns.rrset.from_text("test.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
    found = play().query("none.test").upstream(made).replies(rcode=3)
    found.later(29).query("none.test").forwards_nothing().replies(rcode=3)
    found.later(2).query("none.test").is_forwarded()


def test_a_servers_authority_is_for_its_own_answer_and_not_for_what_is_remembered() -> None:
    made = answer("free.test", "A", "192.0.2.1", flags=dns.flags.AA, ttl=60)
    found = play(BLOCKED).query("free.test").upstream(made).replies("192.0.2.1")
    assert found.reply.flags & dns.flags.AA
    for udp in (True, False):
        assert not found.query("free.test", udp=udp).replies("192.0.2.1").reply.flags & dns.flags.AA
        assert found.was_fast == udp
    found.later(61).query("free.test")
    while found.forward is not None:
        found.silence()
    assert found.replies("192.0.2.1").ede() == 3
    assert not found.reply.flags & dns.flags.AA


def test_types_and_dnssec_bits_are_cached_apart() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    found.query("free.test", "AAAA").is_forwarded()
    found.query("free.test", do=True).is_forwarded()
    found.query("free.test", flags=dns.flags.RD | dns.flags.CD).is_forwarded()


def test_ttl_zero_and_errors_are_not_cached() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=0)).replies("192.0.2.1")
    found.query("free.test").is_forwarded()


# ── expired answers (RFC 8767) ─────────────────────────────────────────────────────────────────────────────────────────


def expired(*entries: str) -> Play:
    """An engine whose cached answer for free.test has expired."""
    found = play(*entries).query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=60))
    return found.later(61)


def exhausted(found: Play) -> Play:
    while found.forward is not None and found.engine.pending:
        found.silence()
    return found


def test_an_expired_answer_is_given_out_when_no_server_answers() -> None:
    found = exhausted(expired().query("free.test").is_forwarded())
    assert found.replies("192.0.2.1").ede() == 3
    assert [rrset.ttl for rrset in found.reply.answer] == [STALE_TTL]
    assert found.engine.stale == 1


def test_an_expired_nxdomain_has_its_own_ede() -> None:
    made = answer("free.test", rcode=dns.rcode.NXDOMAIN)
    made.authority.append(dns.rrset.from_text("test.", 60, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
    found = exhausted(play().query("free.test").upstream(made).later(61).query("free.test").is_forwarded())
    assert found.replies(rcode=3).ede() == 19


def test_no_server_is_asked_again_for_a_moment_after_a_failure() -> None:
    found = exhausted(expired().query("free.test"))
    assert found.query("free.test").forwards_nothing().replies("192.0.2.1").ede() == 3
    found.later(RETRY).query("free.test").is_forwarded()
    found.upstream(answer("free.test", "A", "192.0.2.2")).replies("192.0.2.2")
    assert found.ede() == -1


def test_a_client_that_waits_too_long_gets_the_expired_answer_and_the_new_one_is_cached() -> None:
    found = expired().query("free.test").is_forwarded()
    assert found.engine.reply_stale(found.now + STALE_AFTER - 0.1) == []
    (reply,) = found.engine.reply_stale(found.now + STALE_AFTER)
    assert [str(rdata) for rrset in dns.message.from_wire(reply.wire).answer for rdata in rrset] == ["192.0.2.1"]
    assert found.engine.reply_stale(found.now + STALE_AFTER) == [], "once is enough"
    assert found.upstream(answer("free.test", "A", "192.0.2.2")).settled == []
    found.query("free.test").forwards_nothing().replies("192.0.2.2")


def test_a_client_waits_when_there_is_no_expired_answer() -> None:
    found = play().query("free.test")
    assert found.engine.reply_stale(found.now + 4.0) == []


@pytest.mark.parametrize("entry", ["free.test", "192.0.2.0/24"])
def test_an_expired_answer_is_judged_by_the_policy_of_now(entry: str) -> None:
    found = exhausted(expired(BLOCKED).adopt(rules("192.0.2.0/24", number=2)).query("free.test"))
    assert found.reply.rcode() == dns.rcode.NXDOMAIN
    found = expired(BLOCKED).query("free.test")
    found.adopt(rules(entry.replace("192.0.2.0/24", "192.0.2.1"), number=2))
    (reply,) = found.engine.reply_stale(found.now + STALE_AFTER)
    assert dns.message.from_wire(reply.wire).rcode() == dns.rcode.NXDOMAIN


# ── renewals ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def wanted(*entries: str) -> Play:
    """An engine that is asked for free.test again and again, until its answer has nearly expired."""
    found = play(*entries).query("free.test", do=True).upstream(answer("free.test", "A", "192.0.2.1", ttl=100))
    for _ in range(3):
        found.later(31).query("free.test", do=True).replies("192.0.2.1")
    return found


def test_a_popular_name_is_renewed_before_it_expires() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    assert (forward.query.qname, forward.query.qtype, forward.query.do) == (names.from_text("free.test"), 1, True)
    assert found.engine.refresh(found.now) == []
    assert found.engine.complete(forward.token, answer("free.test", "A", "192.0.2.2").to_wire(), found.now) == Settled([])
    found.later(20).query("free.test", do=True).forwards_nothing().replies("192.0.2.2")
    assert found.engine.refreshed == 1


def test_a_client_gets_the_cached_answer_while_it_is_renewed() -> None:
    found = wanted()
    assert len(found.engine.refresh(found.now)) == 1
    found.query("free.test", do=True).replies("192.0.2.1")


def test_a_client_joins_the_renewal_once_the_answer_has_expired() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    found.later(20).query("free.test", do=True)
    assert isinstance(found.outcome, Joined)
    settled = found.engine.complete(forward.token, answer("free.test", "A", "192.0.2.2").to_wire(), found.now)
    assert isinstance(settled, Settled)
    assert len(settled.replies) == 1


def test_a_renewal_that_fails_makes_no_reply() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    found.forward, found.begun = forward, found.now
    assert exhausted(found).settled == []
    assert found.engine.pending == 0


def test_a_name_that_is_blocked_now_is_not_renewed() -> None:
    found = wanted(BLOCKED).adopt(rules("free.test", number=2))
    assert found.engine.refresh(found.now) == []


def test_conditional_zones_and_local_records() -> None:
    inside = Server("192.0.2.99", 53)
    zones = Zones(
        Upstreams(SERVERS), {names.from_text("corp.test"): Upstreams((inside,))},
        {names.from_text("nas.lan"): (b"\xc0\0\2\7",)}, {names.reverse(b"\xc0\0\2\7"): names.from_text("nas.lan")},
    )  # fmt: skip
    play(zones=zones).query("host.corp.test").is_forwarded(inside)
    play(zones=zones).query("free.test").is_forwarded(SERVERS[0])
    play(zones=zones).query("nas.lan").replies("192.0.2.7").forwards_nothing()
    play(zones=zones).query("nas.lan", "AAAA").replies().forwards_nothing()
    play(zones=zones).query("7.2.0.192.in-addr.arpa", "PTR").replies("nas.lan.").forwards_nothing()
    play("nas.lan", zones=zones).query("nas.lan").is_blocked("nas.lan")


def test_large_answers_are_truncated_over_udp_and_whole_over_tcp() -> None:
    made = answer("free.test", "TXT", *(f'"{n:>200}"' for n in range(20)))
    found = play().query("free.test", "TXT").upstream(made).reply
    assert found.flags & dns.flags.TC
    assert not found.answer
    found = play().query("free.test", "TXT", udp=False).upstream(made).reply
    assert len(found.answer[0]) == 20


def test_without_an_upstream_no_blocked_name_is_looked_up() -> None:
    found = Play(rules(BLOCKED), Zones(Upstreams(())))
    assert found.engine.look_behind(names.from_text(BLOCKED), message.A, found.now) is None
    found.forwards_nothing().adopt(rules(BLOCKED, number=2), Zones(Upstreams(SERVERS)))
    assert found.engine.look_behind(names.from_text(BLOCKED), message.A, found.now) is not None


# ── a verdict is found once ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def screened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the answers that were screened."""
    found: list[str] = []

    def noted(rules: Rules, query: Query, answer: Answer) -> Screened:
        found.append(names.to_text(query.qname))
        return screen(rules, query, answer)

    monkeypatch.setattr(engine, "screen", noted)
    return found


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ("192.0.2.1", {}), ("203.0.113.5", {}), ("203.0.113.5", {"audit": True}), ("203.0.113.5", {"allow": "free.test"}),
    ],
    ids=["passed", "blocked", "audited", "allowed"],
)  # fmt: skip
def test_a_cached_answer_is_screened_once_by_each_judgement(screened: list[str], record: str, options: dict[str, Any]) -> None:
    """An answer with 501 targets took 16 ms for each query."""
    found = Play(rules("203.0.113.0/24", **options)).query("free.test").upstream(answer("free.test", "A", record))
    for number in (1, 2, 3):
        found.adopt(rules("203.0.113.0/24", number=number, **options))
        before = len(screened)
        replies = []
        for _ in range(5):
            found.query("free.test", udp=False).forwards_nothing()
            replies.append(found.reply.to_text())
        assert len(set(replies)) == 1
        assert len(screened) - before <= 1


def test_a_verdict_is_kept_for_each_kind_of_client(screened: list[str]) -> None:
    found = Play(rules("203.0.113.0/24")).query("free.test").upstream(answer("free.test", "A", "203.0.113.5"))
    paused = rules(number=2)
    found.engine.adopt(rules("203.0.113.0/24", number=3), None, [(Acl(["192.0.2.9"]), paused)], Acl(["192.0.2.0/24"]))
    before = len(screened)
    for _ in range(5):
        assert found.query("free.test", client="192.0.2.9", udp=False).reply.answer
        assert not found.query("free.test", client="192.0.2.8", udp=False).reply.answer
    assert len(screened) - before == 2


def test_verdicts_of_judgements_that_are_no_longer_in_force_are_not_kept() -> None:
    """They are not counted in the cache's octets."""
    found = Play(rules("203.0.113.0/24")).query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=3600))
    found.query("led.test").upstream(answer("led.test", "A", "203.0.113.5", ttl=3600))
    for number in range(2, 5):
        found.adopt(rules("203.0.113.0/24", number=number))
        entries = {entry.key[:-3]: entry for entry in found.engine.cache.live(found.now)}
        found.engine.note_cached(entries.values())
        assert entries[names.from_text("free.test")].verdicts is None
        assert list(entries[names.from_text("led.test")].verdicts or ()) == [number]


def test_a_new_answer_is_screened_anew() -> None:
    found = Play(rules("203.0.113.0/24")).query("free.test").upstream(answer("free.test", "A", "203.0.113.5", ttl=5))
    assert found.query("free.test").query("free.test").is_blocked("203.0.113.0/24")
    found.now += 10
    found.query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    found.query("free.test").replies("192.0.2.1")


@pytest.mark.parametrize("number", [1, 2])
def test_the_fast_path_blocks_what_the_engine_has_found_to_lead_to_something_blocked(number: int) -> None:
    found = Play(rules("alipay.example")).query("free.test")
    found.upstream(answer("free.test", "A", "free.test CNAME pay.alipay.example.", "pay.alipay.example A 192.0.2.1"))
    found.adopt(rules("alipay.example", number=number))
    assert not found.query("free.test").was_fast
    for _ in range(2):
        found.query("free.test").is_blocked("alipay.example")
        assert found.was_fast
    found.now += 1000  # it has expired
    found.query("free.test").is_forwarded()
    assert not found.was_fast


def test_a_large_answer_is_judged_by_the_engine_after_a_change_and_is_the_fast_paths_then() -> None:
    """The fast path answers a batch at once, whatever it costs; the engine works in turns."""
    many = [f"192.0.2.{number}" for number in range(fastpath.MAX_JUDGED + 1)]
    found = Play(rules(BLOCKED)).query("free.test").upstream(answer("free.test", "A", *many))
    found.adopt(rules(BLOCKED, number=2))
    assert not found.query("free.test").was_fast
    assert found.query("free.test", edns=False).was_fast
    assert found.reply.flags & dns.flags.TC


# ── the order of addresses ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("qtype", "address"), [("A", "192.0.2.{}"), ("AAAA", "2001:db8::{}")])
@pytest.mark.parametrize("alias", [False, True])
def test_the_addresses_of_a_cached_answer_are_turned_and_aliases_stay_first(qtype: str, address: str, alias: bool) -> None:
    """One server of three got all clients."""
    addresses = [address.format(number) for number in (1, 2, 3)]
    records = ["www.test CNAME lb.test.", *(f"lb.test {qtype} {each}" for each in addresses)] if alias else addresses
    found = Play(rules(BLOCKED)).query("www.test", qtype).upstream(answer("www.test", qtype, *records))
    orders = []
    for ident in range(6):
        reply = found.query("www.test", qtype, ident=ident).reply
        assert found.was_fast
        assert len(reply.answer) == 1 + alias
        assert reply.answer[0].rdtype == (dns.rdatatype.CNAME if alias else dns.rdatatype.from_text(qtype))
        wire = found.settled[0].wire
        orders.append([record.to_text() for record in sorted(reply.answer[-1], key=lambda each: wire.index(each.to_wire()))])
    assert orders[:3] == orders[3:] == [addresses[turn:] + addresses[:turn] for turn in range(3)]


@pytest.mark.parametrize("do", [False, True])
@pytest.mark.parametrize(
    "records",
    [
        ("free.test A 192.0.2.1", "free.test AAAA 2001:db8::1"), ("free.test A 192.0.2.1",),
        ("free.test TXT one", "free.test TXT two"), ("free.test CNAME lb.test.", "lb.test A 192.0.2.1"),
    ],
)  # fmt: skip
def test_what_is_not_several_addresses_keeps_its_order(records: tuple[str, ...], do: bool) -> None:
    found = Play(rules(BLOCKED)).query("free.test", "ANY", do=do).upstream(answer("free.test", "ANY", *records))
    wires = set()
    for ident in range(4):
        found.query("free.test", "ANY", do=do, ident=ident)
        wires.add(found.settled[0].wire[2:])
    assert len(wires) == 1
