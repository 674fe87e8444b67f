"""What an engine does about upstreams: which is asked, what of their answers counts, what the client hears in the end."""

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from embargo import names
from embargo.dns import message
from embargo.dns.cache import RETRY, STALE_TTL
from embargo.dns.engine import MAX_WAITING, STALE_AFTER, Forward, Joined, Zones
from embargo.dns.upstream import PLAIN_FOR, Server, Upstreams
from support.playbook import SERVERS, Play, answer, play, rules

BLOCKED = "alipay.example"


def test_equal_questions_are_merged() -> None:
    found = play().query("free.test").is_forwarded()
    found.query("free.TEST", ident=1)
    assert isinstance(found.outcome, Joined)
    found.upstream(answer("free.test", "A", "192.0.2.1"))
    assert [reply.wire[:2] for reply in found.settled] == [(4711).to_bytes(2), b"\0\1"]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_server_that_cannot_help_is_followed_by_the_next(rcode: int) -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0]).upstream(answer("free.test", rcode=rcode))
    found.is_forwarded(SERVERS[1]).upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_silence_is_followed_by_the_next_and_the_silent_one_is_set_aside() -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0]).silence().is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
    found.query("other.test").is_forwarded(SERVERS[1])
    found.upstream(answer("other.test", "A", "192.0.2.1")).later(60)
    found.query("third.test").is_forwarded(SERVERS[0])


def test_when_nobody_answers_the_client_is_told_within_five_seconds() -> None:
    found = play().query("free.test")
    while found.forward is not None and found.engine.pending:
        found.silence()
    assert found.now <= 1005.0
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 22
    found = play().query("free.test").upstream(answer("free.test", rcode=2)).upstream(answer("free.test", rcode=2))
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23


def test_a_truncated_response_is_asked_for_over_tcp() -> None:
    found = play().query("free.test").upstream(answer("free.test", flags=dns.flags.TC)).is_forwarded(SERVERS[0], tcp=True)
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_a_server_that_does_not_know_edns_is_asked_without() -> None:
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.FORMERR)).is_forwarded(SERVERS[0])
    assert found.forward is not None
    assert not found.forward.edns
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_a_server_that_does_not_know_edns_is_spared_it_for_a_while_and_then_tried_again() -> None:
    def edns(found: Play) -> bool:
        assert found.forward is not None
        return found.forward.edns

    good = answer("free.test", "A", "192.0.2.1", ttl=0)
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.NOTIMP)).upstream(good)
    for seconds, expected in ((1, False), (PLAIN_FOR - 2, False), (2, True)):
        assert edns(found.later(seconds).query("free.test")) == expected
        found.upstream(good)
    assert edns(found.query("free.test")), "it knows EDNS now"


def test_a_server_that_cannot_read_our_question_at_all_is_followed_by_the_next() -> None:
    formerr = answer("free.test", rcode=dns.rcode.FORMERR)
    found = play().query("free.test").upstream(formerr).is_forwarded(SERVERS[0]).upstream(formerr).is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
    assert found.query("free.test").is_forwarded(SERVERS[1]).engine.zones.default.health[SERVERS[0]].plain_until == 0.0


BROKEN = answer("free.test", "A", "192.0.2.1").to_wire()[:-3]


def test_a_malformed_response_is_passed_over_until_the_right_one_comes() -> None:
    """CVE-2023-28452, CVE-2023-29483: who answers first with rubbish must not make us give up."""
    found = play().query("free.test")
    for _ in range(50):
        found.garbage(BROKEN)
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_when_only_malformed_responses_come_the_next_server_is_asked() -> None:
    found = play().query("free.test").garbage(BROKEN).silence().is_forwarded(SERVERS[1]).garbage(BROKEN).silence()
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert "malformed" in str(found.reply.options[0])


def test_a_malformed_response_over_tcp_is_the_servers_failure() -> None:
    tcp = Server("192.0.2.77", 53, "tcp")
    found = play(zones=Zones(Upstreams((tcp, SERVERS[0])))).query("free.test").is_forwarded(tcp, tcp=True)
    found.upstream(BROKEN).is_forwarded(SERVERS[0], tcp=False)


def test_a_response_that_is_truncated_over_tcp_too_is_the_servers_failure() -> None:
    truncated = answer("free.test", flags=dns.flags.TC)
    found = play().query("free.test").upstream(truncated).is_forwarded(SERVERS[0], tcp=True)
    found.upstream(truncated).is_forwarded(SERVERS[1], tcp=False)


def test_other_servers_in_place_of_an_answer_are_no_answer() -> None:
    made = answer("free.test")
    made.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.test."))
    play().query("free.test").upstream(made).is_forwarded(SERVERS[1])


def test_a_name_that_no_server_can_resolve_is_nobodys_fault() -> None:
    found = play()
    servfail = answer("broken.test", rcode=dns.rcode.SERVFAIL)
    for _ in range(3):
        found.query("broken.test").is_forwarded(SERVERS[0]).upstream(servfail).is_forwarded(SERVERS[1]).upstream(servfail)
        assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert found.query("free.test").is_forwarded(SERVERS[0]).engine.zones.default.health[SERVERS[0]].failed == 3


def test_a_server_that_could_not_help_where_another_one_could_is_set_aside() -> None:
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.REFUSED)).is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1")).query("other.test").is_forwarded(SERVERS[1])
    found.later(2).query("third.test").is_forwarded(SERVERS[0])


def test_a_name_too_long_for_its_dname_is_an_answer() -> None:
    play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.YXDOMAIN)).replies(rcode=dns.rcode.YXDOMAIN)


def test_each_question_costs_few_queries_whatever_happens() -> None:
    """Servers, and two more; and each of them once more over TCP or without EDNS."""
    for trouble in (answer("free.test", rcode=2), answer("free.test", rcode=1), answer("free.test", flags=dns.flags.TC), None):
        found, asked = play().query("free.test"), 0
        while found.engine.pending:
            asked += 1
            found = found.silence() if trouble is None else found.upstream(trouble)
        assert asked <= 4
        assert found.now <= 1004.6


def test_records_that_nobody_asked_for_do_not_reach_the_client_when_they_lead_somewhere_blocked() -> None:
    made = answer("free.test", "A", "192.0.2.1")
    made.additional.append(dns.rrset.from_text("cdn.alipay.example.", 60, "IN", "A", "192.0.2.66"))
    found = play(BLOCKED).query("free.test").upstream(made).replies("192.0.2.1").reply
    assert not found.additional


def test_large_answers_are_truncated_over_udp_and_whole_over_tcp() -> None:
    made = answer("free.test", "TXT", *(f'"{n:>200}"' for n in range(20)))
    found = play().query("free.test", "TXT").upstream(made).reply
    assert found.flags & dns.flags.TC
    assert not found.answer
    found = play().query("free.test", "TXT", udp=False).upstream(made).reply
    assert len(found.answer[0]) == 20


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


def test_a_flood_of_questions_is_bounded() -> None:
    found = play()
    for number in range(1000):
        found.query(f"n{number}.test").is_forwarded()
    assert found.query("one.too.many.test").replies(rcode=dns.rcode.SERVFAIL).engine.pending == 1000
    assert found.query("n1.test").outcome == Joined()


def test_clients_that_wait_are_bounded_and_the_rest_is_told() -> None:
    found = play().query("free.test")
    for ident in range(1, MAX_WAITING):
        found.query("free.test", ident=ident)
    assert found.query("free.test", edns=False).replies(rcode=dns.rcode.SERVFAIL).engine.pending == 1
    assert len(found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0)).settled) == MAX_WAITING
    found.query("free.test").is_forwarded().query("free.test")
    assert found.outcome == Joined()


def test_without_an_upstream_the_client_is_told_so() -> None:
    found = Play(rules(BLOCKED), Zones(Upstreams(()))).query("free.test").replies(rcode=dns.rcode.SERVFAIL)
    assert "no upstream" in str(found.reply.options[0])
    assert found.reply.question[0].rdtype == dns.rdatatype.A


def test_without_an_upstream_nobody_is_asked_what_is_behind_a_blocked_name() -> None:
    found = Play(rules(BLOCKED), Zones(Upstreams(())))
    assert found.engine.shadow(names.from_text(BLOCKED), message.A, found.now) is None
    found.forwards_nothing().adopt(rules(BLOCKED, number=2), Zones(Upstreams(SERVERS)))
    assert found.engine.shadow(names.from_text(BLOCKED), message.A, found.now) is not None


# ── settings that change while a question is on its way ──────────────────────────────────────────────────────────────────

NEW = Server("192.0.2.60", 53)


def test_an_answer_by_the_old_settings_is_for_those_who_waited_and_nobody_else() -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0])
    asked = found.forward
    found.adopt(rules(number=2), Zones(Upstreams((NEW,)), without_private=True))
    found.query("free.test", ident=1).is_forwarded(NEW)
    now, found.forward = found.forward, asked
    found.upstream(answer("free.test", "A", "10.0.0.1")).replies("10.0.0.1")
    found.query("free.test", ident=2)
    assert isinstance(found.outcome, Joined), "the cache does not hold it"
    found.forward = now
    found.upstream(answer("free.test", "A", "10.0.0.2", "192.0.2.1"))
    assert [reply.wire[:2] for reply in found.settled] == [b"\0\1", b"\0\2"]
    found.replies("192.0.2.1").query("free.test").forwards_nothing().replies("192.0.2.1")


@pytest.mark.parametrize("without_private", [True, False])
def test_an_answer_by_the_old_settings_is_read_by_them(without_private: bool) -> None:
    found = play(zones=Zones(Upstreams(SERVERS), without_private=without_private)).query("free.test")
    found.adopt(rules(number=2), Zones(Upstreams(SERVERS), without_private=not without_private))
    found.upstream(answer("free.test", "A", "10.0.0.1", "192.0.2.1"))
    found.replies("192.0.2.1", *(() if without_private else ("10.0.0.1",)))


def test_the_next_attempt_goes_where_the_new_settings_say() -> None:
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.SERVFAIL)).is_forwarded(SERVERS[1])
    found.adopt(rules(number=2), Zones(Upstreams((NEW,))))
    found.silence().is_forwarded(NEW).upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
    found.query("free.test").forwards_nothing().replies("192.0.2.1")
    found = play().query("free.test").adopt(rules(number=2), Zones(Upstreams(()))).silence()
    found.replies(rcode=dns.rcode.SERVFAIL).forwards_nothing()


@pytest.mark.parametrize("zones", [None, Zones(Upstreams(SERVERS))])
def test_settings_that_stay_change_nothing_about_a_question(zones: Zones | None) -> None:
    found = play().query("free.test").adopt(rules(number=2), zones).query("free.test", ident=1)
    assert isinstance(found.outcome, Joined)
    found.silence().is_forwarded(SERVERS[1]).upstream(answer("free.test", "A", "192.0.2.1"))
    assert len(found.settled) == 2
    found.query("free.test").forwards_nothing().replies("192.0.2.1")


# ── answers after their time (RFC 8767) ──────────────────────────────────────────────────────────────────────────────────


def expired(*entries: str) -> Play:
    """An engine that knew free.test, whose answer is over by now."""
    found = play(*entries).query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=60))
    return found.later(61)


def exhausted(found: Play) -> Play:
    while found.forward is not None and found.engine.pending:
        found.silence()
    return found


def test_an_old_answer_is_better_than_none() -> None:
    found = exhausted(expired().query("free.test").is_forwarded())
    assert found.replies("192.0.2.1").ede() == 3
    assert [rrset.ttl for rrset in found.reply.answer] == [STALE_TTL]
    assert found.engine.stale == 1


def test_an_old_nxdomain_says_that_it_is_old() -> None:
    made = answer("free.test", rcode=dns.rcode.NXDOMAIN)
    made.authority.append(dns.rrset.from_text("test.", 60, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
    found = exhausted(play().query("free.test").upstream(made).later(61).query("free.test").is_forwarded())
    assert found.replies(rcode=3).ede() == 19


def test_for_a_moment_nobody_is_asked_again() -> None:
    found = exhausted(expired().query("free.test"))
    assert found.query("free.test").forwards_nothing().replies("192.0.2.1").ede() == 3
    found.later(RETRY).query("free.test").is_forwarded()
    found.upstream(answer("free.test", "A", "192.0.2.2")).replies("192.0.2.2")
    assert found.ede() == -1


def test_who_waits_too_long_gets_the_old_answer_and_the_new_one_is_kept() -> None:
    found = expired().query("free.test").is_forwarded()
    assert found.engine.impatient(found.now + STALE_AFTER - 0.1) == []
    (reply,) = found.engine.impatient(found.now + STALE_AFTER)
    assert [str(rdata) for rrset in dns.message.from_wire(reply.wire).answer for rdata in rrset] == ["192.0.2.1"]
    assert found.engine.impatient(found.now + STALE_AFTER) == [], "once is enough"
    assert found.upstream(answer("free.test", "A", "192.0.2.2")).settled == []
    found.query("free.test").forwards_nothing().replies("192.0.2.2")


def test_who_asks_for_what_was_never_known_waits() -> None:
    found = play().query("free.test")
    assert found.engine.impatient(found.now + 4.0) == []


@pytest.mark.parametrize("entry", ["free.test", "192.0.2.0/24"])
def test_what_is_blocked_by_now_is_not_given_out_late(entry: str) -> None:
    found = exhausted(expired(BLOCKED).adopt(rules("192.0.2.0/24", number=2)).query("free.test"))
    assert found.reply.rcode() == dns.rcode.NXDOMAIN
    found = expired(BLOCKED).query("free.test")
    found.adopt(rules(entry.replace("192.0.2.0/24", "192.0.2.1"), number=2))
    (reply,) = found.engine.impatient(found.now + STALE_AFTER)
    assert dns.message.from_wire(reply.wire).rcode() == dns.rcode.NXDOMAIN


# ── answers before their end ─────────────────────────────────────────────────────────────────────────────────────────────


def wanted(*entries: str) -> Play:
    """An engine that is asked for free.test again and again, until its answer is nearly over."""
    found = play(*entries).query("free.test", do=True).upstream(answer("free.test", "A", "192.0.2.1", ttl=100))
    for _ in range(3):
        found.later(31).query("free.test", do=True).replies("192.0.2.1")
    return found


def test_a_name_that_is_asked_for_is_fetched_anew_before_it_is_over() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    assert (forward.query.qname, forward.query.qtype, forward.query.do) == (names.from_text("free.test"), 1, True)
    assert found.engine.refresh(found.now) == []
    assert found.engine.complete(forward.token, answer("free.test", "A", "192.0.2.2").to_wire(), found.now) == []
    found.later(20).query("free.test", do=True).forwards_nothing().replies("192.0.2.2")
    assert found.engine.refreshed == 1


def test_who_comes_while_it_is_fetched_gets_the_old_answer() -> None:
    found = wanted()
    assert len(found.engine.refresh(found.now)) == 1
    found.query("free.test", do=True).replies("192.0.2.1")


def test_who_comes_when_it_is_over_waits_for_what_is_fetched() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    found.later(20).query("free.test", do=True)
    assert isinstance(found.outcome, Joined)
    settled = found.engine.complete(forward.token, answer("free.test", "A", "192.0.2.2").to_wire(), found.now)
    assert isinstance(settled, list)
    assert len(settled) == 1


def test_a_failure_of_what_nobody_waits_for_is_nobodys_reply() -> None:
    found = wanted()
    (forward,) = found.engine.refresh(found.now)
    outcome: object = forward
    while isinstance(outcome, Forward):
        outcome = found.engine.expire(forward.token, "did not answer in 1.0 s", found.now)
    assert outcome == []
    assert found.engine.pending == 0


def test_what_is_blocked_by_now_is_not_fetched() -> None:
    found = wanted(BLOCKED).adopt(rules("free.test", number=2))
    assert found.engine.refresh(found.now) == []
