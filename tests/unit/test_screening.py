"""Answers screened: where they lead, and what a change of policy does to them."""

import ipaddress
import itertools

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from embargo import names
from embargo.dns.screening import Passing
from embargo.dns.upstream import Server, Upstreams
from embargo.dns.zones import Zones
from support.playbook import answer, play, rules

BLOCKED = "alipay.example"


def test_an_allowed_answer_comes_back_unchanged_but_for_the_ttl_cap() -> None:
    made = answer("free.test", "A", "192.0.2.80", "192.0.2.81", ttl=86400)
    found = play(BLOCKED).query("free.test").is_forwarded().upstream(made).replies("192.0.2.80", "192.0.2.81").reply
    assert found.answer[0].ttl == 3600
    assert found.id == 4711


@pytest.mark.parametrize("length", [1, 7, 16])
def test_a_chain_of_aliases_that_ends_in_a_blocked_name_is_blocked(length: int) -> None:
    hops = ["start.test", *(f"hop{n}.test" for n in range(length - 1)), "cdn.ALIPAY.example"]
    chain = [f"{owner} CNAME {target}." for owner, target in itertools.pairwise(hops)]
    play(BLOCKED).query("start.test").upstream(answer("start.test", "A", *chain, f"{hops[-1]} A 192.0.2.1")).is_blocked()


@pytest.mark.parametrize(
    ("qtype", "record"),
    [
        ("MX", "10 mx.alipay.example."),
        ("SRV", "1 1 443 srv.alipay.example."),
        ("NS", "ns.alipay.example."),
        ("NAPTR", '1 1 "s" "x" "" naptr.alipay.example.'),
        ("SVCB", "0 svcb.alipay.example."),
        ("HTTPS", "1 https.alipay.example. alpn=h2"),
        ("CNAME", "alias.alipay.example."),
        ("A", "test DNAME alipay.example."),
    ],
)
def test_every_kind_of_target_is_judged(qtype: str, record: str) -> None:
    play(BLOCKED).query("free.test", qtype).upstream(answer("free.test", qtype, record)).is_blocked()


@pytest.mark.parametrize(
    ("qtype", "record", "rule"),
    [
        ("A", "203.0.113.7", "203.0.113.0/24"),
        ("AAAA", "2001:db8:99::1", "2001:db8:99::/48"),
        ("AAAA", "::ffff:203.0.113.7", "203.0.113.0/24"),
        ("AAAA", "64:ff9b::cb00:7107", "203.0.113.0/24"),
        ("AAAA", "2002:cb00:7107::1", "203.0.113.0/24"),
        ("HTTPS", "1 . ipv4hint=203.0.113.7", "203.0.113.0/24"),
        ("SVCB", "1 svc.test. ipv6hint=2001:db8:99::1", "2001:db8:99::/48"),
    ],
)
def test_every_way_to_a_blocked_network_is_judged(qtype: str, record: str, rule: str) -> None:
    entries = ("203.0.113.0/24", "2001:db8:99::/48")
    play(*entries).query("free.test", qtype).upstream(answer("free.test", qtype, record)).is_blocked(rule)


def test_a_reverse_name_may_point_at_a_blocked_one() -> None:
    """A PTR record leads nobody anywhere; it tells who reads a log what the address is."""
    play(BLOCKED).query("7.2.18.198.in-addr.arpa", "PTR").upstream(
        answer("7.2.18.198.in-addr.arpa", "PTR", "ptr.alipay.example.")
    ).replies("ptr.alipay.example.")


def test_an_allowed_name_passes_with_its_addresses_for_the_firewall() -> None:
    entries = (BLOCKED, "203.0.113.0/24")
    made = answer("good.test", "A", "good.test CNAME cdn.alipay.example.", "cdn.alipay.example A 203.0.113.7", ttl=60)
    found = play(*entries, allow="good.test").query("good.test").upstream(made)
    assert found.reply.rcode() == 0
    assert found.settled[0].passing == Passing(names.from_text("good.test"), (b"\xcb\0\x71\7",), 60)
    assert found.settled[0].attempt is None


def test_an_allowed_alias_passes_with_all_that_it_leads_to() -> None:
    entries = (BLOCKED, "203.0.113.0/24")
    chain = ("www.test CNAME good.test.", "good.test CNAME cdn.alipay.example.", "cdn.alipay.example A 203.0.113.7")
    found = play(*entries, allow="good.test").query("www.test").upstream(answer("www.test", "A", *chain, ttl=60))
    found.replies("203.0.113.7", "cdn.alipay.example.", "good.test.")
    assert found.settled[0].passing == Passing(names.from_text("good.test"), (b"\xcb\0\x71\7",), 60)
    detour = ("www.test CNAME cdn.alipay.example.", "cdn.alipay.example CNAME good.test.", "good.test A 192.0.2.1")
    play(*entries, allow="good.test").query("www.test").upstream(answer("www.test", "A", *detour)).is_blocked()


def test_an_allowed_name_goes_the_whole_way_from_the_cache_too() -> None:
    made = answer("good.test", "A", "203.0.113.7", ttl=60)
    found = play("203.0.113.0/24", allow="good.test").query("good.test").upstream(made)
    for _ in range(3):
        found.query("good.test").forwards_nothing().replies("203.0.113.7")
        assert (found.was_fast, found.settled[0].passing is not None) == (False, True)


def test_what_leads_nowhere_comes_from_the_cache_by_the_short_way() -> None:
    found = play(BLOCKED).query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    assert found.query("Free.test", ident=7).was_fast
    found.adopt(rules("free.test", number=2)).query("free.test").is_blocked("free.test")
    found.adopt(rules(BLOCKED, number=3)).query("free.test").replies("192.0.2.1")
    assert found.was_fast, "nobody claims anything of it: the short way can tell"


def test_what_leads_to_a_listed_name_that_is_off_is_judged_by_the_engine_once() -> None:
    made = answer("free.test", "A", "free.test CNAME alipay.example.", "alipay.example A 192.0.2.1")
    found = play("other.example").query("free.test").upstream(made)
    assert found.query("free.test").was_fast
    found.adopt(rules(BLOCKED, number=2)).query("free.test").is_blocked("alipay.example")
    assert not found.was_fast


@pytest.mark.parametrize("record", ["MX 10 mx.alipay.example.", "TXT free", "A 192.0.2.1"])
def test_a_cached_answer_is_blocked_when_the_policy_changes(record: str) -> None:
    qtype, _, text = record.partition(" ")
    entries = (BLOCKED, "192.0.2.1", "=free.test") if qtype == "TXT" else (BLOCKED, "192.0.2.1")
    found = play("other.example").query("free.test", qtype).upstream(answer("free.test", qtype, text))
    assert found.query("free.test", qtype).was_fast
    found.adopt(rules(*entries, number=2)).query("free.test", qtype).forwards_nothing()
    assert found.reply.rcode() == dns.rcode.NXDOMAIN


def test_rules_that_change_while_the_upstream_is_asked_are_in_force_for_its_answer() -> None:
    found = play("other.example").query("free.test").adopt(rules("free.test", number=2))
    found.upstream(answer("free.test", "A", "192.0.2.1")).is_blocked("free.test")


def test_with_log_all_every_answer_is_an_attempt() -> None:
    found = play(BLOCKED)
    found.engine.rules.log_all = True
    found.query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    for _ in range(2):
        attempt = found.settled[0].attempt
        assert attempt is not None
        assert (attempt.decision, attempt.action, attempt.audit) == (None, "pass", False)
        assert not found.query("free.test").was_fast


def test_audit_tells_where_an_answer_leads() -> None:
    made = answer("www.test", "A", "www.test CNAME cdn.alipay.example.", "cdn.alipay.example A 192.0.2.1")
    found = play(BLOCKED, audit=True).query("www.test").upstream(made).replies("192.0.2.1", "cdn.alipay.example.")
    attempt = found.settled[0].attempt
    assert attempt is not None
    assert attempt.decision is not None
    assert (attempt.audit, attempt.decision.rule) == (True, BLOCKED)
    assert not found.query("www.test").was_fast


def test_audit_lets_pass_and_tells() -> None:
    found = play(BLOCKED, audit=True).query(BLOCKED).is_forwarded().upstream(answer(BLOCKED, "A", "192.0.2.1"))
    attempt = found.replies("192.0.2.1").settled[0].attempt
    assert attempt is not None
    assert (attempt.audit, attempt.action) == (True, "pass")


def test_a_policy_change_acts_on_cached_answers_at_once() -> None:
    made = answer("www.test", "A", "www.test CNAME cdn.alipay.example.", "cdn.alipay.example A 192.0.2.1")
    found = play("other.example").query("www.test").upstream(made).replies("192.0.2.1", "cdn.alipay.example.")
    found.query("www.test").forwards_nothing().replies("192.0.2.1", "cdn.alipay.example.")
    found.adopt(rules(BLOCKED, number=2)).query("www.test").is_blocked().forwards_nothing()
    found.adopt(rules("other.example", number=3)).query("www.test").replies("192.0.2.1", "cdn.alipay.example.")


def test_a_negative_answer_of_an_excepted_name_is_whole_although_its_zone_is_blocked() -> None:
    zones = Zones(Upstreams((Server("192.0.2.53", 53, "tls"),)))
    for rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        made = answer("mail.alipay.example", rcode=rcode, flags=dns.flags.AD)
        for rtype, text in (("SOA", "ns.test. mail.test. 1 2 3 4 30"), ("NSEC", "z.alipay.example. A")):
            made.authority.append(dns.rrset.from_text("alipay.example.", 300, "IN", rtype, text))
        found = play(BLOCKED, "!mail.alipay.example", zones=zones).query("mail.alipay.example", do=True).upstream(made)
        for _ in range(2):
            assert (found.reply.rcode(), len(found.reply.authority)) == (rcode, 2)
            assert found.reply.flags & dns.flags.AD
            found.query("mail.alipay.example", do=True).forwards_nothing()


def test_what_lost_its_other_sections_is_not_vouched_for() -> None:
    made = answer("free.test", "MX", "10 mx.free.test.", flags=dns.flags.AD)
    made.additional.append(dns.rrset.from_text("mx.free.test.", 300, "IN", "A", "203.0.113.7"))
    zones = Zones(Upstreams((Server("192.0.2.53", 53, "tls"),)))
    found = play("203.0.113.0/24", zones=zones).query("free.test", "MX", do=True).upstream(made)
    for _ in range(2):
        assert not found.reply.additional
        assert not found.reply.flags & dns.flags.AD
        found.query("free.test", "MX", do=True).forwards_nothing()


def test_additional_records_that_lead_to_a_blocked_name_are_left_out() -> None:
    made = answer("free.test", "A", "192.0.2.1")
    made.additional.append(dns.rrset.from_text("cdn.alipay.example.", 60, "IN", "A", "192.0.2.66"))
    found = play(BLOCKED).query("free.test").upstream(made).replies("192.0.2.1").reply
    assert not found.additional


# ── what the firewall learns ─────────────────────────────────────────────────────────────────────────────────────────────


def learnt(qname: str, qtype: str, *records: str, allow: str = "") -> list[tuple[str, str, list[str]]]:
    """(name, rule, addresses) of what an upstream's answer tells the firewall; an empty rule: of an unblocked name."""
    played = play(BLOCKED, allow=allow)
    played.engine.resolved = []
    played.query(qname, qtype).upstream(answer(qname, qtype, *records))
    found = []
    for name, decision, addresses, _ in played.engine.resolved:
        shown = [str(ipaddress.ip_address(address)) for address in addresses]
        found.append((names.to_text(name), decision.rule if decision else "", shown))
    return found


def test_the_addresses_of_an_unblocked_name_are_its_own() -> None:
    assert learnt("free.test", "A", "192.0.2.1") == [("free.test", "", ["192.0.2.1"])]
    assert learnt("free.test", "HTTPS", "1 . ipv4hint=192.0.2.1") == [("free.test", "", ["192.0.2.1"])]


def test_the_addresses_behind_a_blocked_alias_are_that_names() -> None:
    """Not the stranger's, who could lead anywhere."""
    chain = ("ads.test CNAME hop.test.", "hop.test CNAME pay.alipay.example.", "pay.alipay.example CNAME cdn.test.")
    assert learnt("ads.test", "A", *chain, "cdn.test A 192.0.2.1") == [("pay.alipay.example", BLOCKED, ["192.0.2.1"])]


@pytest.mark.parametrize("qtype", ["HTTPS", "SVCB"])
@pytest.mark.parametrize("target", ["alipay.example.", "pay.alipay.example."])
def test_hints_beside_a_blocked_target_are_nobodys(qtype: str, target: str) -> None:
    """Anybody's record may name a blocked target and the addresses of others."""
    assert learnt("ads.test", qtype, f"1 {target} ipv4hint=192.0.2.1 ipv6hint=2001:db8::1") == []
