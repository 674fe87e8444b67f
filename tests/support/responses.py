"""Responses as upstreams send them, and as they should not."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import dns.edns
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import strategies as st

from embargo import names
from embargo.dns import message, response
from embargo.dns.message import Answer
from support.playbook import query

SOA = "ns.test. mail.test. 1 2 3 4 30"
QUESTION = names.from_text("a.test") + b"\0\1\0\1"
OWNERS = ("a.test", "b.test", "c.b.test", "test", "other", "d.a.test", "A.TEST")
DATA = (
    ("A", "192.0.2.1"), ("A", "192.0.2.2"), ("CNAME", "b.test."), ("CNAME", "c.b.test."), ("DNAME", "b.test."),
    ("NS", "ns.b.test."), ("MX", "10 mx.b.test."), ("TXT", '"b.test"'), ("SOA", "ns.test. mail.test. 1 2 3 4 30"),
    ("HTTPS", "1 c.b.test. ipv4hint=192.0.2.9"),
    ("SRV", "1 2 3 srv.test."), ("NAPTR", '1 2 "s" "x" "" n.test.'), ("RP", "m.test. t.test."), ("NSEC", "z.test. A"),
)  # fmt: skip
RECORDS = st.builds(
    lambda owner, data, ttl: dns.rrset.from_text(owner + ".", ttl, "IN", *data), st.sampled_from(OWNERS),
    st.sampled_from(DATA), st.sampled_from((0, 1, 300, 86400, 0x7FFFFFFF)),
)  # fmt: skip
ANYTHING = st.tuples(*(st.lists(RECORDS, max_size=5) for _ in range(3)))


def _usual(chain: list[str], addresses: int, soa: str, ttl: int) -> tuple[list[dns.rrset.RRset], ...]:
    answers = [dns.rrset.from_text(f"{one}.", ttl, "IN", "CNAME", f"{two}.") for one, two in pairwise(("a.test", *chain))]
    owner = chain[-1] if chain else "a.test"
    answers += [dns.rrset.from_text(f"{owner}.", ttl, "IN", "A", f"192.0.2.{n}") for n in range(addresses)]
    authority = [dns.rrset.from_text(f"{soa}.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30")] if soa else []
    return answers, authority, []


#: a chain in its order and addresses at its end, or an SOA: what nearly every response is
USUAL = st.builds(
    _usual, st.lists(st.sampled_from(("b.test", "B.test", "c.b.test", "x.example", "a.test")), max_size=18), st.integers(0, 3),
    st.sampled_from(("", "test", "a.test", "com", "x.example")), st.sampled_from((0, 1, 300, 86400, 0x7FFFFFFF)),
)  # fmt: skip
SECTIONS = ANYTHING | USUAL


_PADDING, _EDE = dns.edns.OptionType.PADDING, dns.edns.OptionType.EDE
OPTIONS = st.lists(
    st.sampled_from(
        (
            dns.edns.EDEOption(dns.edns.EDECode.DNSSEC_BOGUS, "bogus"),
            dns.edns.GenericOption(_PADDING, bytes(9)),
            dns.edns.GenericOption(_EDE, b"\0"),
        )
    ),
    max_size=3,
)


def build(
    sections: tuple[list[dns.rrset.RRset], ...], rcode: int, edns: bool, options: Sequence[dns.edns.Option] = ()
) -> bytes:
    made = dns.message.make_response(dns.message.make_query("a.test", "A", use_edns=0 if edns else False))
    if edns:
        made.use_edns(options=list(options))
    made.answer, made.authority, made.additional = sections
    made.set_rcode(dns.rcode.Rcode(rcode))
    return made.to_wire(max_size=65535)


def mutated(draw: Callable[[Any], Any], wire: bytes) -> bytes:
    """Some octets changed, and perhaps cut short."""
    octets = bytearray(wire)
    for _ in range(draw(st.integers(0, 6))):
        octets[draw(st.integers(2, len(octets) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(12, len(octets)))])


def add(made: dns.message.Message, section: str, *records: str, ttl: int = 300) -> dns.message.Message:
    """Records written `owner TYPE text`, each in an RRset of its own so that they stay in this order."""
    for record in records:
        owner, rtype, text = record.split(None, 2)
        getattr(made, section).append(dns.rrset.from_text(owner + ".", ttl, "IN", rtype, text))
    return made


def question_of(wire: bytes) -> bytes:
    """The question section of a message with one question."""
    _, end = names.read(wire, 12)
    return wire[12 : end + 4]


def parse(made: dns.message.Message) -> Answer:
    """The message as `response.parse` reads it, for its own question."""
    wire = made.to_wire(max_size=65535)
    return response.parse(wire, question_of(wire))


def passed_on(made: dns.message.Message) -> dns.message.Message:
    """The reply that a client gets, as dnspython reads it."""
    qname, qtype = made.question[0].name, made.question[0].rdtype
    asked = message.parse_query(query(str(qname), qtype))
    return dns.message.from_wire(message.reply(asked, parse(made), udp=False))


def texts(section: list[dns.rrset.RRset]) -> list[str]:
    """Records written `owner TYPE text`, in their order."""
    return [f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}" for rrset in section for rdata in rrset]
