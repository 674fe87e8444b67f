"""DNS messages: queries taken apart, replies shaped. dnspython builds and judges."""

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from embargo import names
from embargo.dns import message
from embargo.dns.message import Answer, RejectedQuery
from support import twins
from support.playbook import query


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


@pytest.mark.parametrize("do", [False, True])
def test_in_private_a_question_says_nothing_by_its_length(do: bool) -> None:
    lengths = set()
    for length in range(1, 64):
        asked = message.parse_query(query(f"{'x' * length}.test", do=do))
        wire = message.ask_in_private(asked, 99)
        made = dns.message.from_wire(wire)
        assert made.flags == dns.flags.RD | dns.flags.AD
        assert (made.id, made.ednsflags, str(made.question[0].name)) == (99, dns.flags.DO if do else 0, f"{'x' * length}.test.")
        (padding,) = made.options
        assert (int(padding.otype), set(padding.to_wire() or b"") <= {0}) == (12, True)
        lengths.add(len(wire))
        assert dns.message.from_wire(message.ask_in_private(asked, 99, edns=False)).edns == -1
    assert lengths == {128}


def test_the_ad_bit_is_for_clients_that_ask_for_it() -> None:
    """By AD or by DO (RFC 6840 section 5.7), and AD in a query is not passed back by itself."""
    for flags, do, told in ((0, False, False), (dns.flags.AD, False, True), (0, True, True), (dns.flags.AD, True, True)):
        asked = message.parse_query(query("a.test", do=do, flags=dns.flags.RD | flags))
        for validated in (False, True):
            wire = message.reply(asked, Answer(0, flags=message.AD if validated else 0))
            assert bool(dns.message.from_wire(wire).flags & dns.flags.AD) == (told and validated)


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
        made = message.reply(message.parse_query(query("a.test", edns=edns)), Answer(3), ede=option)
        assert (b"why" in made) == edns


def test_an_extended_error_goes_before_the_answer_does() -> None:
    """RFC 8914 section 3: an explanation that does not fit is no reason to truncate."""
    body = b"\xc0\x0c\0\x10\0\1\0\0\0\1\1\x2c" + b"\xff" + bytes(299)
    asked = message.parse_query(query("a.test", payload=512))
    found = dns.message.from_wire(message.reply(asked, Answer(0, (1, 0, 0), body), ede=message.ede(15, "x" * 300)))
    assert not found.flags & dns.flags.TC
    assert (len(found.answer), found.options) == (1, ())


def test_an_extended_error_is_cut_between_characters() -> None:
    option = message.ede(15, "x" + "\u652f" * 300)
    asked = message.parse_query(query("a.test"))
    (found,) = dns.message.from_wire(message.reply(asked, Answer(3), ede=option)).options
    assert isinstance(found, dns.edns.EDEOption)
    assert found.text == "x" + "\u652f" * ((message.MAX_EDE - 1) // 3)


@pytest.mark.parametrize(("payload", "room"), [(0, 512), (511, 512), (700, 700), (1232, 1232), (4096, 1232), (65535, 1232)])
def test_a_udp_reply_fills_what_the_client_takes_to_the_last_octet(payload: int, room: int) -> None:
    asked = message.parse_query(query("a.test", payload=payload))
    head = 12 + len(asked.question) + 11
    for octets, truncated in ((room - head, False), (room - head + 1, True)):
        record = b"\xc0\x0c\0\x0a\0\1\0\0\0\1" + (octets - 12).to_bytes(2) + bytes(octets - 12)
        wire = message.reply(asked, Answer(0, (1, 0, 0), record))
        found = dns.message.from_wire(wire)
        assert bool(found.flags & dns.flags.TC) == truncated
        assert len(wire) == (room if not truncated else head)


def test_what_is_over_before_the_question_is_refused_without_it() -> None:
    with pytest.raises(RejectedQuery) as rejected:
        message.parse_query(b"\0\1\1\0" + bytes(8))
    assert message.reply(rejected.value.query, Answer(rejected.value.rcode)) == b"\0\1\x81\x81" + bytes(8)


class Counting(bytes):
    """Octets that count how often somebody looks at one."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        self.looks += 1
        return super().__getitem__(at)


def test_the_names_of_a_query_cost_its_length_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of pointers to pointers, and records that all begin at its end."""
    packet = bytearray(query("a.test", edns=False))
    owner = 12
    for number in range(500):
        last = len(packet)
        packet += (b"\1a" if number > 360 else b"") + (0xC000 | owner).to_bytes(2) + b"\0\x10\0\1\0\0\0\0\0\0"
        owner = last if number < 360 else owner
    packet[10:12] = (500).to_bytes(2)
    twins.without(monkeypatch)
    watched = Counting(packet)
    assert message.parse_query(watched).qname == names.from_text("a.test")
    assert watched.looks < 2 * len(packet)


def test_types_without_a_mnemonic_are_written_by_number() -> None:
    assert [message.type_name(number) for number in (1, 65, 65399)] == ["A", "HTTPS", "TYPE65399"]
    assert message.QTYPES["SVCB"] == 64
    assert dns.rcode.BADVERS == message.BADVERS
