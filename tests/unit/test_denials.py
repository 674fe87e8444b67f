"""A name that does not exist has nothing below it: one NXDOMAIN answers for all of that (RFC 8020)."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from embargo import names
from embargo.dns.cache import Cache
from embargo.dns.denials import MAX_NAMES, Denials
from embargo.dns.upstream import Server, Upstreams
from embargo.dns.zones import Zones
from support.playbook import SERVERS, Play, answer, play, rules

SOA = "ns.test. mail.test. 1 2 3 4 300"


def nxdomain(name: str, *authority: str, soa: bool = True) -> dns.message.Message:
    made = answer(name, rcode=dns.rcode.NXDOMAIN)
    if soa:
        made.authority.append(dns.rrset.from_text("test.", 300, "IN", "SOA", SOA))
    for record in authority:
        owner, rtype, text = record.split(None, 2)
        made.authority.append(dns.rrset.from_text(owner, 300, "IN", rtype, text))
    return made


def denied() -> Play:
    """An engine that knows that none.test does not exist."""
    return play("alipay.example").query("none.test").upstream(nxdomain("none.test")).replies(rcode=3)


@pytest.mark.parametrize(
    ("name", "qtype"), [("a.none.test", "A"), ("b.a.NONE.test", "HTTPS"), ("none.test", "AAAA"), ("none.test", "DS")]
)
@pytest.mark.parametrize("edns", [True, False])
def test_what_is_below_is_denied_from_the_cache(name: str, qtype: str, edns: bool) -> None:
    found = denied().later(100).query(name, qtype, edns=edns).forwards_nothing().replies(rcode=3)
    assert str(found.reply.question[0].name) == f"{name}."
    assert [rrset.to_text() for rrset in found.reply.authority] == [f"test. 200 IN SOA {SOA}"]
    found.later(10).query(name, qtype, edns=edns).forwards_nothing().replies(rcode=3)
    assert found.was_fast, "it is in the cache now"
    assert found.reply.authority[0].ttl == 190
    found.later(200).query(name, qtype, edns=edns).is_forwarded()


@pytest.mark.parametrize("name", ["test", "other.test", "anone.test", "none.test.example"])
def test_what_is_not_below_is_asked(name: str) -> None:
    denied().query(name).is_forwarded()


def test_the_target_of_an_alias_is_denied_and_not_the_alias() -> None:
    made = answer("alias.test", "A", "alias.test CNAME none.test.", rcode=dns.rcode.NXDOMAIN)
    made.authority.append(dns.rrset.from_text("test.", 300, "IN", "SOA", SOA))
    found = play().query("alias.test").upstream(made).replies("none.test.", rcode=3)
    found.query("alias.test", "TXT").is_forwarded().query("a.alias.test").is_forwarded()


def test_a_denial_without_an_soa_is_for_its_own_question() -> None:
    found = play().query("none.test").upstream(nxdomain("none.test", soa=False)).replies(rcode=3)
    found.query("a.none.test").is_forwarded()


@pytest.mark.parametrize("owner", ["none.test.", "NONE.test."])
def test_a_denial_with_an_soa_of_its_own_name_denies_nothing_below(owner: str) -> None:
    """Filters make them up, for a name alone too: the owner of an SOA exists."""
    made = nxdomain("none.test", soa=False)
    made.authority.append(dns.rrset.from_text(owner, 300, "IN", "SOA", SOA))
    found = play().query("none.test").upstream(made).replies(rcode=3)
    found.query("a.none.test").is_forwarded().query("none.test").replies(rcode=3)


def test_dnssec_is_kept_apart_and_its_proofs_deny_what_is_below() -> None:
    """Names in the proofs are compressed by the length of the first question, and are whole in the second."""
    proofs = ("a.test. NSEC z.test. A RRSIG NSEC", "test. NSEC a.test. NS SOA RRSIG NSEC DNSKEY")
    found = play().query("none.test", do=True).upstream(nxdomain("none.test", *proofs)).replies(rcode=3)
    found.query("much.longer.than.that.none.test", do=True).forwards_nothing().replies(rcode=3)
    assert [rrset.to_text() for rrset in found.reply.authority] == [
        f"test. 300 IN SOA {SOA}", *(record.replace(" NSEC", " 300 IN NSEC", 1) for record in proofs),
    ]  # fmt: skip
    found.query("a.none.test").is_forwarded()
    found.query("a.none.test", do=True, flags=dns.flags.RD | dns.flags.CD).is_forwarded()


def test_what_was_learnt_of_a_name_below_before_goes_on() -> None:
    """RFC 8020 section 2: such an answer may be used until it expires."""
    found = play().query("a.none.test").upstream(answer("a.none.test", "A", "192.0.2.1"))
    found.query("none.test").upstream(nxdomain("none.test")).query("a.none.test").forwards_nothing().replies("192.0.2.1")


def test_servers_of_a_zone_are_not_bound_by_what_others_deny() -> None:
    """A zone that only the inside knows, below a name that does not exist outside."""
    inside = Server("192.0.2.99", 53)
    found = play(zones=Zones(Upstreams(SERVERS), {names.from_text("corp.none.test"): Upstreams((inside,))}))
    found.query("none.test").upstream(nxdomain("none.test")).query("host.corp.none.test").is_forwarded(inside)
    found.query("host.none.test").replies(rcode=3)


def test_the_policy_judges_names_below_as_any_other() -> None:
    found = play("pay.none.test").query("none.test").upstream(nxdomain("none.test"))
    found.query("pay.none.test").is_blocked("pay.none.test")
    found.query("b.none.test").replies(rcode=3).adopt(rules("b.none.test", number=2)).query("b.none.test").is_blocked(
        "b.none.test"
    )


def test_a_flush_of_a_name_below_asks_for_it_anew() -> None:
    found = denied().query("a.none.test").replies(rcode=3)
    found.engine.flush(names.from_text("a.none.test"))
    found.query("a.none.test").is_forwarded()


def test_the_index_is_bounded() -> None:
    denials = Denials(Cache())
    for number in range(MAX_NAMES + 10):
        denials.note(names.from_text(f"n{number}.test") + b"\0\1\0")
    assert len(denials) == MAX_NAMES
