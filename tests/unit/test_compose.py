"""Answers of our own. dnspython reads them; what dnslib packs is what a packer by hand would."""

import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from dnslib import BufferError, DNSBuffer, DNSLabel  # type: ignore[import-untyped] # ships no types

from embargo import names
from embargo.dns import compose, message
from support.playbook import query


@pytest.mark.parametrize("qtype", ["A", "AAAA", "TXT"])
@pytest.mark.parametrize("rcode", [message.NOERROR, message.NXDOMAIN])
def test_a_negative_reply_says_for_how_long(qtype: str, rcode: int) -> None:
    found = dns.message.from_wire(message.reply(message.parse_query(query("A.Test", qtype)), compose.negative(rcode, 10)))
    (soa,) = found.authority
    assert (found.rcode(), soa.ttl, soa[0].minimum, str(soa.name)) == (rcode, 10, 10, "A.Test.")
    assert {str(soa[0].mname), str(soa[0].rname)} == {"blocked.invalid.", "hostmaster.invalid."}


def test_a_reverse_name_points_at_a_name() -> None:
    asked = message.parse_query(query("7.2.0.192.in-addr.arpa", "PTR"))
    found = dns.message.from_wire(message.reply(asked, compose.pointer(names.from_text("nas.lan"), 600)))
    (rrset,) = found.answer
    assert (str(rrset.name), rrset.ttl, [str(rdata) for rdata in rrset]) == ("7.2.0.192.in-addr.arpa.", 600, ["nas.lan."])


@pytest.mark.parametrize("qname", [".", "invalid", "blocked.invalid", "x.hostmaster.invalid"])
def test_the_same_octets_stand_behind_a_question_of_any_name(qname: str) -> None:
    """A name of the SOA record that pointed at the question, or at another name behind it, would be another name there."""
    asked = message.parse_query(query(qname))
    found = dns.message.from_wire(message.reply(asked, compose.negative(message.NXDOMAIN, 1)))
    assert {str(found.authority[0][0].mname), str(found.authority[0][0].rname)} == {"blocked.invalid.", "hostmaster.invalid."}


def test_no_address_is_an_empty_answer() -> None:
    assert compose.addresses((), 10) == message.Answer(message.NOERROR)


# ── what dnslib does with names: the reasons for the way in which it is used ─────────────────────────────────────────────


def test_dnslib_splits_text_at_dots_and_takes_labels_as_they_are() -> None:
    assert DNSLabel(b"a.b").label == (b"a", b"b")
    assert DNSLabel((b"a.b\xff\0",)).label == (b"a.b\xff\0",)


def test_dnslib_points_into_a_message_and_only_at_equal_case() -> None:
    buffer = DNSBuffer()
    for text in (b"www.test", b"ftp.test", b"ftp.TEST"):
        buffer.encode_name(DNSLabel(text))
    assert bytes(buffer.data) == b"\3www\4test\0" + b"\3ftp\xc0\4" + b"\3ftp\4TEST\0"


def test_dnslib_reads_no_label_that_is_not_utf_8() -> None:
    with pytest.raises(BufferError, match="Invalid label"):
        DNSBuffer(b"\1\xff\0").decode_name()
