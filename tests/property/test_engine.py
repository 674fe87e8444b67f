"""Any octets, policy and answer: the engine answers or drops, and what it lets pass an independent reading lets pass too."""

import contextlib
import itertools

import dns.exception
import dns.message
import dns.rcode
import dns.rrset
from hypothesis import event, given
from hypothesis import strategies as st

from embargo import explain, names
from embargo.dns import fastpath
from embargo.dns.acl import Acl
from embargo.dns.cache import Cache
from embargo.dns.engine import Drop, Engine, Joined, Reply, Settled
from embargo.dns.judgement import Rules
from embargo.dns.questions import Forward
from embargo.dns.upstream import Upstreams
from embargo.dns.zones import Zones
from embargo.lists import image, policy
from embargo.lists.policy import Action, App, List, Selection
from support import oracle, shortcut
from support.playbook import CLIENT, NXDOMAIN, SERVERS, answer, query, rules
from support.strategies import ADDRESSES, APPS, ASKED, LOCAL, SELECTIONS

Catalogue = tuple[tuple[App, ...], tuple[List, ...], Selection]
CATALOGUES = st.tuples(APPS, LOCAL, SELECTIONS)


def judgement(catalogue: Catalogue, number: int) -> Rules:
    apps, local, selection = catalogue
    combined = policy.combine(apps, local, selection)
    board = policy.select(apps, combined.classes, selection)
    return Rules(number, number, Acl(["192.0.2.0/24"]), image.Image(image.encode(combined)), board, NXDOMAIN)


def allowed(catalogue: Catalogue, name: bytes) -> bool:
    return [(claim.app, claim.function) for claim in oracle.claims(*catalogue, name)[:1]] == [("local", "allow")]


def reading(catalogue: Catalogue, chain: list[names.Name], addresses: list[oracle.Address]) -> Action:
    """Names are read in the order in which they lead to each other; an allowed one ends the reading."""
    found = Action.PASS
    for name in chain:
        if allowed(catalogue, name):
            return found
        action = oracle.verdict(*catalogue, name)[0]
        if action is Action.BLOCK:
            return action
        found = max(found, action)
    return max([found, *(oracle.verdict(*catalogue, address)[0] for address in addresses)])


def led(chain: list[names.Name], addresses: list[oracle.Address]) -> dns.message.Message:
    """What an upstream says of the first name: aliases to the others, and the addresses of the last."""
    texts = [names.to_text(name) for name in chain]
    records = [f"{owner} CNAME {target}." for owner, target in itertools.pairwise(texts)]
    records += [f"{texts[-1]} {'A' if address.version == 4 else 'AAAA'} {address}" for address in addresses]
    return answer(texts[0], "A" if addresses and addresses[0].version == 4 else "AAAA", *records)


def said(made: dns.message.Message) -> set[str]:
    return {f"{rrset.name} {rdata}" for rrset in made.answer for rdata in rrset}


@given(
    CATALOGUES, CATALOGUES, st.lists(ASKED.filter(lambda name: len(name) > 1), min_size=1, max_size=4, unique=True),
    st.lists(ADDRESSES, max_size=3), st.booleans(),
)  # fmt: skip
def test_what_passes_an_independent_reading_lets_pass_too(
    catalogue: Catalogue, after: Catalogue, chain: list[names.Name], addresses: list[oracle.Address], edns: bool
) -> None:
    addresses = [address for address in addresses if address.version == addresses[0].version]
    made = led(chain, addresses)
    packet = query(names.to_text(chain[0]), made.question[0].rdtype, edns=edns)
    engine = Engine(judgement(catalogue, 1), Zones(Upstreams(SERVERS)), Cache())
    for number, current in enumerate((catalogue, catalogue, after, after, catalogue), start=1):
        if number > 2:
            engine.adopt(judgement(current, number))
        fast = shortcut.answer(packet, CLIENT, engine.rules, engine.cache, 10.0)
        outcome: object = engine.handle(packet, CLIENT, None, 10.0)
        if isinstance(outcome, Forward):
            assert fast is None
            settled = engine.complete(outcome.token, made.to_wire(), 10.0)
            assert isinstance(settled, Settled)
            (outcome,) = settled.replies
        assert isinstance(outcome, Reply)
        if fast is not None:
            assert fast.reply(packet[:2]) == outcome.wire
        expected = reading(current, chain, addresses)
        event(f"{expected.name}{' by the short way' if fast else ''}")
        reply = dns.message.from_wire(outcome.wire)
        assert (reply.rcode() == dns.rcode.NXDOMAIN) == (expected is Action.BLOCK)
        assert (outcome.attempt is not None) == (expected is not Action.PASS)
        if expected is not Action.BLOCK:
            assert said(reply) == said(made)


SPECIAL = st.sampled_from(("localhost", "a.localhost", "x.onion", "b.local", "resolver.arpa", "1.0.0.10.in-addr.arpa", "arpa"))


@given(
    CATALOGUES, ASKED.filter(lambda name: len(name) > 1) | SPECIAL.map(names.from_text), st.sampled_from(("A", "TXT", "PTR"))
)
def test_why_says_what_the_engine_does(catalogue: Catalogue, name: names.Name, qtype: str) -> None:
    rules_ = judgement(catalogue, 1)
    engine = Engine(rules_, Zones(Upstreams(SERVERS)), Cache())
    outcome = engine.handle(query(names.to_text(name), qtype), CLIENT, None, 0.0)
    why = explain.verdict(rules_.image, rules_.board, names.to_text(name), qtype).verdict
    event(why)
    if isinstance(outcome, Forward):
        assert why in ("passed", "allowed", "audited")
    else:
        assert isinstance(outcome, Reply)
        assert why == ("blocked" if outcome.attempt else "special")


@given(st.binary(max_size=600), st.booleans())
def test_any_octets_are_answered_or_dropped(packet: bytes, udp: bool) -> None:
    engine = Engine(rules("alipay.example", "203.0.113.0/24"), Zones(Upstreams(SERVERS)), Cache())
    outcome = engine.handle(packet, CLIENT, None, 0.0, udp=udp)
    assert isinstance(outcome, Reply | Forward | Joined | Drop)
    if isinstance(outcome, Reply):
        assert outcome.wire[:2] == packet[:2]
        assert outcome.wire[2] & 0x80
        assert len(outcome.wire) <= 1232 or not udp
        if len(packet) > 512:
            assert len(outcome.wire) <= 2 * len(packet)
    fastpath.Shortcut(engine.rules, engine.cache).answer(packet, CLIENT, 0.0)


NONE = answer("free.test", rcode=3)
NONE.authority.append(dns.rrset.from_text("test.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
LARGE = answer("free.test", "A", *(f"192.0.2.{number}" for number in range(250)))
RESPONSES = [
    each.to_wire(max_size=65535)
    for each in (NONE, LARGE, answer("free.test", "A", "free.test CNAME a.test.", "a.test A 192.0.2.1", "b.test A 192.0.2.2"))
]


@given(st.data())
def test_any_response_settles_a_question_or_goes_on(data: st.DataObject) -> None:
    """What an upstream sends, cut, torn and changed: an outcome each time, and the client hears something in the end."""
    engine = Engine(rules("alipay.example", "203.0.113.0/24"), Zones(Upstreams(SERVERS)), Cache())
    outcome = engine.handle(query("free.test"), CLIENT, None, 0.0)
    for _ in range(12):
        if not isinstance(outcome, Forward):
            break
        wire = bytearray(data.draw(st.sampled_from(RESPONSES)))
        for _ in range(data.draw(st.integers(0, 6))):
            wire[data.draw(st.integers(2, len(wire) - 1))] = data.draw(st.integers(0, 255))
        wire = wire[: data.draw(st.integers(12, len(wire)))]
        result = engine.complete(outcome.token, bytes(wire), 0.1)
        outcome = result if isinstance(result, Forward) else result.replies[0]
    assert isinstance(outcome, Reply)
    with contextlib.suppress(dns.exception.DNSException):  # what was changed inside a record is the upstream's
        dns.message.from_wire(outcome.wire)
