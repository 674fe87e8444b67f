"""Any octets from an upstream: read or refused, and what is passed on says nothing that was not said."""

import contextlib

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from embargo.dns import message, response
from embargo.dns.message import Answer
from embargo.errors import MessageError
from support.playbook import query
from support.responses import QUESTION, SECTIONS, build, mutated


def spoken(made: dns.message.Message) -> list[set[tuple[dns.name.Name, int, object]]]:
    """What the sections say, whatever the order and the TTLs."""
    sections = (made.answer, made.authority, made.additional)
    return [{(rrset.name, rrset.rdtype, rdata) for rrset in section for rdata in rrset} for section in sections]


def passed_on(answer: Answer) -> bytes:
    return message.reply(message.parse_query(query("a.test")), answer, udp=False)


@given(SECTIONS, st.sampled_from((0, 3, 2)), st.booleans())
def test_an_answer_that_is_passed_on_has_only_records_of_the_response_and_reads_the_same(
    sections: tuple[list[dns.rrset.RRset], ...], rcode: int, edns: bool
) -> None:
    wire = build(sections, rcode, edns)
    try:
        found = response.parse(wire, QUESTION)
    except MessageError:  # a chain in circles, or nothing that belongs to the question
        return
    reply = dns.message.from_wire(passed_on(found))
    for now, before in zip(spoken(reply), spoken(dns.message.from_wire(wire)), strict=True):
        assert now <= before
    for rrset in (*reply.answer, *reply.authority, *reply.additional):
        assert rrset.ttl <= response.MAX_TTL
    assert response.parse(passed_on(found), QUESTION) == found, "what belongs still belongs"
    assert found.lifetime <= min((ttl for _, ttl in found.ttls), default=response.UNPROVEN_TTL)
    for offset, ttl in found.ttls:
        assert int.from_bytes(found.body[offset : offset + 4]) == ttl
    short = message.answer_only(found)
    assert spoken(dns.message.from_wire(passed_on(short))) == [spoken(reply)[0], set(), set()]


@given(SECTIONS, st.data())
def test_any_damaged_response_is_read_or_refused(sections: tuple[list[dns.rrset.RRset], ...], data: st.DataObject) -> None:
    packet = mutated(data.draw, build(sections, 0, edns=True))
    if response.matches(packet, int.from_bytes(packet[:2]), QUESTION):
        with contextlib.suppress(MessageError):
            found = response.parse(packet, QUESTION)
            message.answer_only(found)
            with contextlib.suppress(dns.exception.DNSException):  # what is wrong inside a record is the upstream's
                dns.message.from_wire(passed_on(found))


@given(st.binary(max_size=300))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    packet = b"\0\1\x81\x80\0\1" + octets[:6].ljust(6, b"\0") + QUESTION + octets[6:]
    with contextlib.suppress(MessageError):
        response.parse(packet, QUESTION)
