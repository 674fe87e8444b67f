"""Answers of our own: dnslib's octets are those of a packer by hand, and dnspython reads out of them what was put in."""

import ipaddress
import struct

import dns.message
import dns.rdatatype
from hypothesis import given
from hypothesis import strategies as st

from embargo import names
from embargo.dns import compose, message
from embargo.dns.cache import Cache
from embargo.dns.engine import Engine, Reply
from embargo.dns.judgement import BlockMode
from embargo.dns.message import Answer
from embargo.dns.upstream import Upstreams
from embargo.dns.zones import Zones
from embargo.names import Name
from support import shortcut
from support.playbook import CLIENT, rules

LABELS = st.binary(min_size=1, max_size=63)  # a label may hold any octet, a dot and a zero too


def wire_name(labels: list[bytes]) -> Name:
    return Name(b"".join(bytes([len(label)]) + label for label in labels) + b"\0")


NAMES = st.lists(LABELS, max_size=8).map(wire_name).filter(lambda name: len(name) <= names.MAX_NAME)
LONGEST = wire_name([b"\xff" * 63, b"." * 63, b"\0" * 63, b"x" * 61])
TTLS = st.integers(0, 0x7FFFFFFF)
V4, V6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
BLOCKED = "alipay.example"


def by_hand(rtype: int, ttl: int, rdata: bytes) -> bytes:
    return struct.pack("!HHHIH", 0xC00C, rtype, 1, ttl, len(rdata)) + rdata


def soa(ttl: int) -> bytes:
    numbers = struct.pack("!IIIII", 1, 3600, 600, 86400, ttl)
    return by_hand(message.SOA, ttl, b"\7blocked\7invalid\0" + b"\x0ahostmaster\7invalid\0" + numbers)


def read(qname: Name, qtype: int, answer: Answer) -> dns.message.Message:
    """A reply with this answer, as dnspython reads it."""
    return dns.message.from_wire(message.reply(message.own_query(qname, qtype), answer, udp=False))


@given(NAMES | st.just(LONGEST), TTLS, st.sampled_from((message.NOERROR, message.NXDOMAIN)))
def test_a_negative_answer(qname: Name, ttl: int, rcode: int) -> None:
    composed = compose.negative(rcode, ttl)
    assert composed == Answer(rcode, (0, 1, 0), soa(ttl))
    found = read(qname, message.MX, composed)
    (rrset,) = found.authority
    assert (found.rcode(), rrset.name.to_wire(), rrset.ttl, rrset[0].minimum) == (rcode, qname, ttl, ttl)


@given(NAMES, TTLS, st.lists(V4 | V6, max_size=40))
def test_addresses(qname: Name, ttl: int, packed: list[bytes]) -> None:
    composed = compose.addresses(packed, ttl)
    octets = b"".join(by_hand(message.A if len(each) == 4 else message.AAAA, ttl, each) for each in packed)
    assert composed == Answer(message.NOERROR, (len(packed), 0, 0), octets)
    found = read(qname, message.A, composed)
    assert {str(rdata) for rrset in found.answer for rdata in rrset} == {str(ipaddress.ip_address(each)) for each in packed}
    assert all((rrset.name.to_wire(), rrset.ttl) == (qname, ttl) for rrset in found.answer)


@given(NAMES, TTLS, NAMES | st.just(LONGEST))
def test_a_pointer(qname: Name, ttl: int, target: Name) -> None:
    composed = compose.pointer(target, ttl)
    assert composed == Answer(message.NOERROR, (1, 0, 0), by_hand(message.PTR, ttl, target))
    (rrset,) = read(qname, message.PTR, composed).answer
    assert (rrset.name.to_wire(), rrset.rdtype, rrset[0].target.to_wire()) == (qname, dns.rdatatype.PTR, target)


@given(st.lists(LABELS, max_size=3).map(wire_name), TTLS, st.sampled_from(("A", "AAAA", "TXT")), st.data())
def test_a_block_is_the_same_octets_composed_cut_to_pieces_and_by_hand(
    prefix: Name, ttl: int, text: str, data: st.DataObject
) -> None:
    """The engine sends the composed answer, both fast paths send its pieces."""
    kind = data.draw(st.sampled_from(("nxdomain", "nodata", "refused", "address")))
    v4, v6 = data.draw(st.tuples(st.lists(V4, max_size=3).map(tuple), st.lists(V6, max_size=3).map(tuple)))
    mode = BlockMode(kind, ttl, v4, v6) if kind == "address" else BlockMode(kind, ttl)
    qtype = message.QTYPES[text]
    question = prefix[:-1] + names.from_text(BLOCKED) + qtype.to_bytes(2) + b"\0\1"
    packet = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + question
    addresses = {"A": v4, "AAAA": v6}.get(text, ()) if kind == "address" else ()
    body = b"".join(by_hand(qtype, ttl, address) for address in addresses)
    counts = (len(addresses), 0, 0)
    if not addresses and kind != "refused":
        body, counts = soa(ttl), (0, 1, 0)
    rcode = {"nxdomain": message.NXDOMAIN, "refused": message.REFUSED}.get(kind, message.NOERROR)
    judgement = rules(BLOCKED, mode=mode)
    engine = Engine(judgement, Zones(Upstreams(())), Cache())
    slow, fast = engine.handle(packet, CLIENT, None, 0.0), shortcut.answer(packet, CLIENT, judgement, engine.cache, 0.0)
    assert isinstance(slow, Reply)
    assert slow.wire == packet[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, *counts) + question + body
    assert fast is not None
    assert fast.reply(packet[:2]) == slow.wire
