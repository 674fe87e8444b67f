"""Questions on their way: which server is asked, what of its answers counts, what the client hears in the end."""

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from embargo.dns.engine import Joined
from embargo.dns.upstream import PLAIN_FOR, SEVERAL, Server, Strip, Upstreams
from embargo.dns.zones import Zones
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


def test_a_client_gets_servfail_within_five_seconds_when_no_server_answers() -> None:
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


def edns(found: Play) -> bool:
    """Whether the last question was asked with EDNS."""
    assert found.forward is not None
    return found.forward.edns


FORMERR, NOTIMP = (dns.rcode.FORMERR, dns.rcode.NOTIMP)
PLAIN = [answer(f"n.z{number}.test", "A", "192.0.2.1", ttl=0) for number in range(SEVERAL)]


def refused(found: Play, number: int, rcode: int = FORMERR) -> Play:
    """One question that is answered only without EDNS."""
    assert edns(found.query(f"n.z{number}.test"))
    assert not edns(found.upstream(answer(f"n.z{number}.test", rcode=rcode)))
    return found.upstream(PLAIN[number]).replies("192.0.2.1")


@pytest.mark.parametrize("rcode", [FORMERR, NOTIMP])
def test_a_server_that_refuses_edns_for_one_name_is_asked_with_it_for_all_others(rcode: int) -> None:
    found = play()
    for _ in range(20):
        refused(found, 0, rcode)
    assert edns(found.query("other.test"))
    assert found.engine.zones.default.health[SERVERS[0]].plain_until == 0.0


def test_a_server_that_refuses_edns_everywhere_is_spared_it_for_a_while_and_then_tried_again() -> None:
    found, plain = play(), answer("signed.test", "A", "192.0.2.1", ttl=0)
    plain.use_edns(False)
    for number in range(SEVERAL):
        refused(found, number)
    for seconds, expected in ((1, False), (PLAIN_FOR - 2, False), (2, True)):
        assert edns(found.later(seconds).query("free.test")) == expected
        found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
        assert edns(found.query("signed.test", do=True)), "DO cannot be said without"
        found.upstream(plain)


def test_a_server_that_has_answered_with_edns_knows_it_for_ever() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
    for number in range(SEVERAL):
        refused(found, number)
    assert edns(found.query("other.test"))


def test_a_server_that_cannot_read_our_question_at_all_is_followed_by_the_next() -> None:
    formerr = answer("free.test", rcode=dns.rcode.FORMERR)
    found = play().query("free.test").upstream(formerr).is_forwarded(SERVERS[0]).upstream(formerr).is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
    assert found.query("other.test").is_forwarded(SERVERS[0]).engine.zones.default.health[SERVERS[0]].plain_in == set()
    assert edns(found)


#: a record whose length is not that of its type
BROKEN = answer("free.test", "A", "192.0.2.1").to_wire().replace(b"\0\4\xc0\0\2\1", b"\0\3\xc0\0\2")


@pytest.mark.parametrize("first", ["malformed", "servfail"])
def test_a_malformed_response_costs_no_time(first: str) -> None:
    """It came from the right server with our ID and question, so it is an answer that is of no use, like SERVFAIL."""
    found = play().query("free.test").upstream(EVENTS[first]).is_forwarded(SERVERS[1]).upstream(BROKEN)
    assert found.now == 1000.0
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert "malformed" in str(found.reply.options[0])


@pytest.mark.parametrize("cut", range(1, 29))
def test_a_response_that_ends_before_its_last_record_is_asked_for_over_tcp(cut: int) -> None:
    """As if it had the TC bit: something on the way cuts datagrams."""
    whole = answer("free.test", "A", "192.0.2.1").to_wire()
    found = play().query("free.test").upstream(whole[:-cut]).is_forwarded(SERVERS[0], tcp=True)
    assert found.now == 1000.0
    found.upstream(whole).replies("192.0.2.1")


def test_a_malformed_response_over_tcp_is_the_servers_failure() -> None:
    tcp = Server("192.0.2.77", 53, "tcp")
    found = play(zones=Zones(Upstreams((tcp, SERVERS[0])))).query("free.test").is_forwarded(tcp, tcp=True)
    found.upstream(BROKEN).is_forwarded(SERVERS[0], tcp=False)


def test_a_response_that_is_truncated_over_tcp_too_is_the_servers_failure() -> None:
    truncated = answer("free.test", flags=dns.flags.TC)
    found = play().query("free.test").upstream(truncated).is_forwarded(SERVERS[0], tcp=True)
    found.upstream(truncated).is_forwarded(SERVERS[1], tcp=False)


# ── the table at the top of `questions` ──────────────────────────────────────────────────────────────────────────────────

REFERRAL = answer("free.test")
REFERRAL.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.test."))
EVENTS: dict[str, dns.message.Message | bytes] = {
    "formerr": answer("free.test", rcode=dns.rcode.FORMERR),
    "notimp": answer("free.test", rcode=dns.rcode.NOTIMP),
    "truncated": answer("free.test", flags=dns.flags.TC),
    "malformed": BROKEN,
    "servfail": answer("free.test", rcode=dns.rcode.SERVFAIL),
    "referral": REFERRAL,
    "answer": answer("free.test", "A", "192.0.2.1"),
}
#: state → (scheme of the server, events that lead there)
STATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "UDP, EDNS": ("udp", ()),
    "UDP": ("udp", ("formerr",)),
    "TCP, EDNS": ("udp", ("truncated",)),
    "TCP": ("udp", ("formerr", "truncated")),
    "TCP server": ("tcp", ()),
    "TLS server": ("tls", ()),
}
NEXT = "next server"
TABLE = {
    "UDP, EDNS": {"formerr": "UDP", "notimp": "UDP", "truncated": "TCP, EDNS", "malformed": NEXT},
    "UDP": {"formerr": NEXT, "notimp": NEXT, "truncated": "TCP", "malformed": NEXT},
    "TCP, EDNS": {"formerr": "TCP", "notimp": "TCP", "truncated": NEXT, "malformed": NEXT},
    "TCP": {"formerr": NEXT, "notimp": NEXT, "truncated": NEXT, "malformed": NEXT},
    "TCP server": {"formerr": "TCP", "notimp": "TCP", "truncated": NEXT, "malformed": NEXT},
    "TLS server": {"formerr": "TCP", "notimp": "TCP", "truncated": NEXT, "malformed": NEXT},
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_an_exchange_goes_on_as_the_table_says(state: str, event: str) -> None:
    scheme, events = STATES[state]
    first = Server("192.0.2.77", 53, scheme)
    found = play(zones=Zones(Upstreams((first, SERVERS[1])))).query("free.test")
    for each in events:
        found.upstream(EVENTS[each])
    expected = TABLE[state].get(event, "ends" if event == "answer" else NEXT)
    found.upstream(EVENTS[event])
    if expected == "ends":
        found.replies("192.0.2.1")
        return
    assert found.forward is not None
    server, edns, tcp = (first, "EDNS" in expected, "TCP" in expected) if expected != NEXT else (SERVERS[1], True, False)
    assert (found.forward.server, found.forward.edns, found.forward.tcp) == (server, edns, tcp)


@pytest.mark.parametrize("state", STATES)
def test_silence_is_followed_by_the_next_server_from_every_state(state: str) -> None:
    scheme, events = STATES[state]
    found = play(zones=Zones(Upstreams((Server("192.0.2.77", 53, scheme), SERVERS[1])))).query("free.test")
    for each in events:
        found.upstream(EVENTS[each])
    found.silence().is_forwarded(SERVERS[1], tcp=False)


def test_other_servers_in_place_of_an_answer_are_no_answer() -> None:
    made = answer("free.test")
    made.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.test."))
    play().query("free.test").upstream(made).is_forwarded(SERVERS[1])


def test_a_name_that_no_server_can_resolve_sets_no_server_aside() -> None:
    found = play()
    servfail = answer("broken.test", rcode=dns.rcode.SERVFAIL)
    for _ in range(3):
        found.query("broken.test").is_forwarded(SERVERS[0]).upstream(servfail).is_forwarded(SERVERS[1]).upstream(servfail)
        assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
        found.later(10)
    assert found.query("free.test").is_forwarded(SERVERS[0]).engine.zones.default.health[SERVERS[0]].failed == 3


def test_a_server_that_could_not_help_where_another_one_could_is_set_aside_after_several_zones() -> None:
    """One client with a zone that the first server cannot resolve must not send all others to the second one."""
    found = play()

    def bogus(name: str) -> None:
        found.query(name).is_forwarded(SERVERS[0]).upstream(answer(name, rcode=dns.rcode.SERVFAIL)).is_forwarded(SERVERS[1])
        found.upstream(answer(name, "A", "192.0.2.1"))

    for number in range(20):
        bogus(f"n{number}.bogus.test")
    found.query("free.test").is_forwarded(SERVERS[0]).upstream(answer("free.test", "A", "192.0.2.1"))
    for number in range(SEVERAL):
        bogus(f"n{number}.z{number}.test")
    found.query("other.test").is_forwarded(SERVERS[1])
    found.later(2).query("third.test").is_forwarded(SERVERS[0])


# ── late answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_answer_of_any_server_asked_so_far_is_used(which: int) -> None:
    """Each is late, and none of them is forgotten when the next is asked."""
    found = play().query("free.test").silence().silence().silence().later(0.1)
    found.late(answer("free.test", "A", "192.0.2.1"), which).replies("192.0.2.1").forwards_nothing()
    found.query("free.test").forwards_nothing().replies("192.0.2.1")


def silent_for_ever(found: Play) -> Play:
    while found.engine.pending:
        found.silence()
    return found.replies(rcode=dns.rcode.SERVFAIL)


def test_an_answer_that_comes_when_the_client_has_gone_is_cached() -> None:
    found = silent_for_ever(play().query("free.test"))
    assert found.later(1).late(answer("free.test", "A", "192.0.2.1")).settled == []
    found.query("free.test").forwards_nothing().replies("192.0.2.1")


def test_an_answer_to_an_earlier_question_is_for_those_who_ask_now() -> None:
    found = silent_for_ever(play().query("free.test")).later(60).query("free.test", ident=2).is_forwarded()
    assert found.late(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1").settled[0].wire[:2] == b"\0\2"
    found.forwards_nothing()


def test_a_second_answer_to_a_question_changes_nothing() -> None:
    found = play().query("free.test").silence().upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
    assert found.late(answer("free.test", "A", "192.0.2.2")).settled == []
    found.query("free.test").forwards_nothing().replies("192.0.2.1")


def test_an_answer_of_no_use_that_is_late_does_not_end_the_wait_for_the_others() -> None:
    found = play().query("free.test").silence().is_forwarded(SERVERS[1])
    assert found.late(answer("free.test", rcode=dns.rcode.SERVFAIL)).settled == []
    assert found.engine.pending == 1
    found = play().query("free.test").silence()
    second = found.forward
    found.late(answer("free.test", rcode=dns.rcode.SERVFAIL))
    found.forward = second
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_steady_latency_is_learnt() -> None:
    """Servers that take longer than the first wait are asked once for each name from then on."""
    found = play().query("first.test").is_forwarded(SERVERS[0]).silence().later(0.1)
    found.late(answer("first.test", "A", "192.0.2.1")).replies("192.0.2.1")
    found.query("second.test").is_forwarded(SERVERS[0])
    assert found.forward is not None
    assert found.forward.wait > 1.1


def test_a_late_answer_by_old_settings_is_no_answer_by_the_new_ones() -> None:
    found = play().query("free.test").silence().adopt(rules(number=2), Zones(Upstreams((NEW,), Strip(private=True))))
    found.silence().is_forwarded(NEW)
    assert found.late(answer("free.test", "A", "10.0.0.1")).settled == []
    assert found.engine.pending == 1


def test_an_unreachable_server_is_asked_again_after_a_pause() -> None:
    """While the address of this machine changes, nothing can be sent for some tenths of a second."""
    found = play().query("free.test").unreachable().is_forwarded(SERVERS[1]).unreachable().is_forwarded(SERVERS[0])
    assert found.forward is not None
    assert found.forward.delay > 0
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
    found = play().query("free.test")
    while found.forward is not None:
        found.unreachable()
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert 1000.5 <= found.now <= 1002


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


def test_without_an_upstream_the_client_gets_servfail_with_the_reason() -> None:
    found = Play(rules(BLOCKED), Zones(Upstreams(()))).query("free.test").replies(rcode=dns.rcode.SERVFAIL)
    assert "no upstream" in str(found.reply.options[0])
    assert found.reply.question[0].rdtype == dns.rdatatype.A


def test_what_was_validated_is_believed_over_tls_alone() -> None:
    made = answer("free.test", "A", "192.0.2.1", flags=dns.flags.AD, ttl=60)
    asked = dns.flags.RD | dns.flags.AD
    for scheme in ("udp", "tcp", "tls"):
        zones = Zones(Upstreams((Server("192.0.2.53", 53, scheme),)))
        found = play(BLOCKED, zones=zones).query("free.test", flags=asked).upstream(made)
        assert bool(found.reply.flags & dns.flags.AD) == (scheme == "tls")
        for flags, told in ((asked, scheme == "tls"), (dns.flags.RD, False)):
            found.query("free.test", flags=flags).forwards_nothing()
            assert found.was_fast
            assert bool(found.reply.flags & dns.flags.AD) == told
        found.later(61).query("free.test", flags=asked)
        while found.forward is not None:
            found.silence()
        assert found.replies("192.0.2.1").ede() == 3
        assert not found.reply.flags & dns.flags.AD, "what has expired was validated too long ago"


def test_an_answer_of_private_addresses_alone_is_no_servers_fault() -> None:
    made = answer("rebound.test", "A", "192.168.1.1")
    made.authority.append(dns.rrset.from_text("rebound.test.", 300, "IN", "NS", "ns.rebound.test."))
    zones = Zones(Upstreams((Server("192.0.2.53", 53),), Strip(private=True)))
    found = play(zones=zones).query("rebound.test").upstream(made).replies()
    assert not found.reply.authority
    assert [health.failed for health in zones.default.health.values()] == [0]


# ── settings that change while a question is on its way ──────────────────────────────────────────────────────────────────

NEW = Server("192.0.2.60", 53)


def test_an_answer_by_the_old_settings_goes_only_to_clients_that_waited() -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0])
    asked = found.forward
    found.adopt(rules(number=2), Zones(Upstreams((NEW,), Strip(private=True))))
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
    found = play(zones=Zones(Upstreams(SERVERS, Strip(private=without_private)))).query("free.test")
    found.adopt(rules(number=2), Zones(Upstreams(SERVERS, Strip(private=not without_private))))
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
