"""DNS messages: queries taken apart, responses matched, replies shaped. dnspython builds and judges."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from embargo import message, names
from embargo.errors import MessageError
from embargo.message import Answer
from support.playbook import answer, query


def test_a_query_is_taken_apart() -> None:
    found = message.parse_query(query("WWW.Free.test", "AAAA", do=True, payload=4096, flags=dns.flags.RD | dns.flags.CD))
    assert (found.id, found.qname, found.qtype) == (4711, names.from_text("www.free.test"), message.AAAA)
    assert found.question.startswith(b"\3WWW\4Free\4test\0")
    assert (found.edns, found.do, found.size) == (True, True, message.MAX_UDP)
    assert message.parse_query(query("a.test", edns=False)).size == 512
    assert message.parse_query(query("a.test", payload=100)).size == 512


def test_questions_that_differ_in_case_alone_have_one_key() -> None:
    def key(packet: bytes) -> bytes:
        return message.parse_query(packet).key

    assert key(query("A.test")) == key(query("a.TEST", ident=1))
    different = [query("a.test", "TXT"), query("a.test", do=True), query("a.test", flags=dns.flags.CD), query("b.test")]
    assert len({key(packet) for packet in [query("a.test"), *different]}) == 5


def test_our_own_question_has_nothing_of_the_clients() -> None:
    asked = message.parse_query(query("Free.TEST", do=True, flags=dns.flags.RD | dns.flags.AD | dns.flags.CD))
    made = dns.message.from_wire(message.ask(asked, 99))
    assert (made.id, str(made.question[0].name), made.payload, made.options) == (99, "free.test.", 1232, ())
    assert made.flags == dns.flags.RD | dns.flags.CD
    assert made.ednsflags == dns.flags.DO
    assert dns.message.from_wire(message.ask(asked, 99, edns=False)).edns == -1


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, 12, 13, 20, 22, 24])
def test_a_response_matches_in_every_octet_that_counts(place: int) -> None:
    asked = message.asked(message.parse_query(query("free.test")))
    wire = bytearray(answer("free.test", "A", "192.0.2.1").to_wire())
    ident = int.from_bytes(wire[:2])
    assert message.matches(bytes(wire), ident, asked)
    wire[place] ^= 0x80 if place == 2 else 1
    assert not message.matches(bytes(wire), ident, asked)


def parse(made: dns.message.Message) -> Answer:
    wire = made.to_wire(max_size=65535)
    _, end = names.read(wire, 12)
    return message.parse_response(wire, wire[12 : end + 4])


def test_ttls_are_capped_and_the_lifetime_is_the_shortest() -> None:
    found = parse(answer("a.test", "A", "192.0.2.1", ttl=86400))
    assert (found.lifetime, found.ttls[0][1]) == (message.MAX_TTL, message.MAX_TTL)
    made = answer("a.test", "A", "192.0.2.1", ttl=300)
    made.answer.append(dns.rrset.from_text("b.test.", 20, "IN", "A", "192.0.2.2"))
    assert parse(made).lifetime == 20


def test_a_ttl_with_its_highest_bit_set_is_zero() -> None:
    wire = bytearray(answer("a.test", "A", "192.0.2.1").to_wire())
    at = wire.index(b"\xc0\0\2\1") - 6
    wire[at] = 0x80
    assert message.parse_response(bytes(wire), bytes(wire[12:24])).lifetime == 0


def test_where_records_lead() -> None:
    made = answer("a.test", "A", "a.test CNAME b.test.", "b.test A 192.0.2.1")
    made.additional.append(
        dns.rrset.from_text("c.test.", 60, "IN", "HTTPS", "1 d.test. ipv4hint=192.0.2.2 ipv6hint=2001:db8::2")
    )
    found = parse(made)
    a, b, c, d = (names.from_text(f"{each}.test") for each in "abcd")
    assert found.leads == (((a, b), ()), ((b,), (b"\xc0\0\2\1",)))
    assert found.extra_leads == (((c, d), (b"\xc0\0\2\2", b"\x20\1\r\xb8" + bytes(11) + b"\2")),)


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_response_that_is_cut_short_is_malformed(cut: int) -> None:
    wire = answer("a.test", "A", "192.0.2.1").to_wire()
    records = wire[: wire.index(b"\xc0\0\2\1") + 4]
    with pytest.raises(MessageError):
        message.parse_response(records[:-cut], wire[12:24])


def test_pointers_that_run_forward_or_in_circles_are_malformed() -> None:
    wire = bytearray(answer("a.test", "A", "b.test CNAME c.test.").to_wire())
    at = wire.index(b"\1b")
    for target in (at, at + 40):
        broken = bytes(wire[:at]) + (0xC000 | target).to_bytes(2) + bytes(wire[at + 2 :])
        with pytest.raises(MessageError):
            message.parse_response(broken, bytes(wire[12:24]))


def test_a_reply_is_no_larger_than_the_client_takes() -> None:
    asked = message.parse_query(query("a.test", edns=False))
    body = b"\xc0\x0c\0\x10\0\1\0\0\0\1\1\x2c" + b"\xff" + bytes(299)
    large = Answer(0, (2, 0, 0), body * 2)
    found = dns.message.from_wire(message.reply(asked, large))
    assert found.flags & dns.flags.TC
    assert not found.answer
    assert len(message.reply(asked, large, udp=False)) > 512


def test_an_extended_error_without_edns_is_left_out() -> None:
    option = message.ede(15, "why")
    for edns in (True, False):
        made = message.reply(message.parse_query(query("a.test", edns=edns)), Answer(3, (0, 0, 0), b""), ede=option)
        assert (b"why" in made) == edns


def test_types_without_a_mnemonic_are_written_by_number() -> None:
    assert [message.type_name(number) for number in (1, 65, 65399)] == ["A", "HTTPS", "TYPE65399"]
    assert message.QTYPES["SVCB"] == 64
    assert dns.rcode.BADVERS == message.BADVERS
