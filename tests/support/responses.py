"""Responses as upstreams send them, and as they should not."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
from hypothesis import strategies as st

from embargo import names

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


def build(sections: tuple[list[dns.rrset.RRset], ...], rcode: int, edns: bool) -> bytes:
    made = dns.message.make_response(dns.message.make_query("a.test", "A", use_edns=0 if edns else False))
    made.answer, made.authority, made.additional = sections
    made.set_rcode(dns.rcode.Rcode(rcode))
    return made.to_wire(max_size=65535)


def mutated(draw: Callable[[Any], Any], wire: bytes) -> bytes:
    """Some octets changed, and perhaps cut short."""
    octets = bytearray(wire)
    for _ in range(draw(st.integers(0, 6))):
        octets[draw(st.integers(2, len(octets) - 1))] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(12, len(octets)))])
