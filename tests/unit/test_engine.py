"""The query pipeline as plays: gates, blocks, answers that lead somewhere, upstreams in trouble."""

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from embargo.dns import message
from embargo.dns.judgement import BlockMode
from support.playbook import NULL, answer, play, query

BLOCKED = "alipay.example"


# ── gates ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_outside_the_access_list_gets_no_answer() -> None:
    play(BLOCKED).query(BLOCKED, client="203.0.113.9").is_dropped("acl").forwards_nothing()


def test_responses_and_stumps_are_dropped() -> None:
    play().packet(b"\0\1\x81").is_dropped("short")
    play().packet(answer("a.test").to_wire()).is_dropped("response")


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    packet = bytearray(query(BLOCKED))
    packet[2] |= opcode << 3
    found = play(BLOCKED).packet(bytes(packet)).forwards_nothing()
    assert found.settled[0].wire[3] & 15 == dns.rcode.NOTIMP
    assert found.settled[0].wire[2] >> 3 & 15 == opcode


@pytest.mark.parametrize("count", [0, 2, 65535])
def test_any_number_of_questions_but_one_is_a_format_error(count: int) -> None:
    packet = bytearray(query(BLOCKED, edns=False))
    packet[4:6] = count.to_bytes(2)
    found = play(BLOCKED).packet(bytes(packet)).forwards_nothing()
    assert found.settled[0].wire[3] & 15 == dns.rcode.FORMERR


def test_a_second_question_is_no_way_round() -> None:
    two = bytearray(query("free.test", edns=False) + query(BLOCKED, edns=False)[12:])
    two[4:6] = b"\0\2"
    found = play(BLOCKED).packet(bytes(two)).forwards_nothing()
    assert found.settled[0].wire[3] & 15 == dns.rcode.FORMERR


HEADER = b"\x12\x34\1\0\0\1\0\0\0\0\0\0"


@pytest.mark.parametrize(
    "rest",
    [
        b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        b"\xc0\x20\0\1\0\1",  # forward
        b"\3www\xc0\x0c\0\1\0\1",  # back into itself
        b"\x40\0\1\0\1",  # a label type of the past
        b"\3www",  # cut short
        b"\3www\0\0\1",  # cut short in the type
        b"\3www\0\0\1\0\1garbage",
        (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",  # 257 octets
    ],
)
def test_malformed_questions_are_format_errors(rest: bytes) -> None:
    found = play().packet(HEADER + rest).forwards_nothing()
    assert found.settled[0].wire[:2] == b"\x12\x34"
    assert found.settled[0].wire[3] & 15 == dns.rcode.FORMERR


def test_the_longest_name_is_answered() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    play().query(name).is_forwarded()


OPT = b"\0\0\x29\4\xd0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("count", "rest"),
    [
        (1, b""),  # a record that is not there
        (0, OPT),  # one that is not announced
        (1, OPT + b"\0"),
        (2, OPT + OPT),
        (1, b"\1x" + OPT),  # an OPT record has no name
        (1, OPT[:-1] + b"\4\0\x0a\0\1"),  # an option cut short
        (1, OPT[:-1] + b"\3\0\x0a\0"),  # its head cut short
        (1, OPT[:-1] + b"\4\0\x0a\0\0"[:4]),
        (600, OPT),
        (65535, OPT),
    ],
)
def test_whatever_is_wrong_behind_the_question_is_a_format_error(count: int, rest: bytes) -> None:
    packet = bytearray(query(BLOCKED, edns=False) + rest)
    packet[10:12] = count.to_bytes(2)
    found = play(BLOCKED).packet(bytes(packet)).forwards_nothing().reply
    assert found.rcode() == dns.rcode.FORMERR
    assert found.edns == -1


def test_six_hundred_records_behind_the_question_are_a_format_error() -> None:
    packet = bytearray(query(BLOCKED, edns=False) + b"\0\0\1\0\1\0\0\0\0\0\0" * 600)
    packet[10:12] = (600).to_bytes(2)
    assert play(BLOCKED).packet(bytes(packet), udp=False).reply.rcode() == dns.rcode.FORMERR


def test_other_records_behind_the_question_are_read_over() -> None:
    packet = bytearray(query(BLOCKED, edns=False) + b"\0\0\1\0\1\0\0\0\0\0\4\1\2\3\4" + OPT)
    packet[11] = 2
    assert play(BLOCKED).packet(bytes(packet)).is_blocked().reply.edns == 0


@pytest.mark.parametrize("flags", [0x0400, 0x0200, 0x0080, 0x0040, 0x0020, 0x0010, 0x000F])
def test_flags_that_mean_nothing_in_a_query_come_back_as_nothing(flags: int) -> None:
    packet = bytearray(query(BLOCKED))
    packet[2:4] = (0x0100 | flags).to_bytes(2)
    found = play(BLOCKED).packet(bytes(packet)).is_blocked().settled[0].wire
    assert int.from_bytes(found[2:4]) == 0x8183 | flags & dns.flags.CD


def test_a_label_may_hold_any_octet() -> None:
    play(BLOCKED).packet(HEADER + b"\4a\0\n.\6ALIPAY\7example\0\0\1\0\1").is_blocked().forwards_nothing()


def test_a_client_that_comes_over_an_ipv6_socket_with_an_ipv4_address_is_that_client() -> None:
    play(BLOCKED).query(BLOCKED, client="::ffff:192.0.2.10").is_blocked()
    play(BLOCKED).query(BLOCKED, client="::ffff:203.0.113.9").is_dropped("acl")
    play(BLOCKED).query(BLOCKED, client="2001:db8::1%lan0").is_blocked()


def test_another_edns_version_is_refused_with_ours() -> None:
    found = play(BLOCKED).packet(_version(1))
    assert found.reply.rcode() == dns.rcode.BADVERS
    assert found.reply.edns == 0


def _version(number: int) -> bytes:
    packet = bytearray(query(BLOCKED))
    packet[-5] = number
    return bytes(packet)


@pytest.mark.parametrize("qclass", ["CH", "HS", "ANY"])
def test_other_classes_are_refused(qclass: str) -> None:
    play(BLOCKED).query(BLOCKED, rdclass=qclass).forwards_nothing().replies(rcode=dns.rcode.REFUSED)


@pytest.mark.parametrize("qtype", ["AXFR", "IXFR", "TKEY", "TSIG", "MAILB", "MAILA"])
def test_meta_types_are_refused(qtype: str) -> None:
    play().query("free.test", qtype).forwards_nothing().replies(rcode=dns.rcode.REFUSED)


@pytest.mark.parametrize("do", [True, False])
@pytest.mark.parametrize("cd", [True, False])
def test_what_a_client_hides_in_a_query_is_not_passed_on_but_do_and_cd_are(do: bool, cd: bool) -> None:
    subnet = dns.edns.ECSOption("198.51.100.0", 24)
    flags = dns.flags.RD | dns.flags.AD | (dns.flags.CD if cd else 0)
    found = play().query("FREE.test", payload=4096, options=[subnet], do=do, flags=flags).is_forwarded()
    assert found.forward is not None
    sent = dns.message.from_wire(message.ask(found.forward.query, 99, edns=found.forward.edns))
    assert str(sent.question[0].name) == "free.test."
    assert sent.flags == dns.flags.RD | (dns.flags.CD if cd else 0)
    assert (sent.ednsflags, sent.payload, sent.options) == (dns.flags.DO if do else 0, 1232, ())


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

TYPES = ("A", "AAAA", "ANY", "CNAME", "HTTPS", "SVCB", "TXT", "MX", "NS", "SOA", "SRV", "NAPTR", "NULL", "TYPE65399")


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("udp", [True, False])
def test_a_blocked_name_is_nxdomain_for_every_type(qtype: str, edns: bool, udp: bool) -> None:
    found = play(BLOCKED).query("WWW.Alipay.Example", qtype, edns=edns, udp=udp).is_blocked().forwards_nothing().reply
    (soa,) = found.authority
    assert (soa.ttl, soa[0].minimum) == (10, 10)
    assert str(found.question[0].name) == "WWW.Alipay.Example."
    assert (found.edns >= 0) == edns


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize(
    ("mode", "rcode", "v4", "v6"),
    [
        (BlockMode("nodata", 10), 0, (), ()),
        (BlockMode("refused", 10), 5, (), ()),
        (NULL, 0, ("0.0.0.0",), ("::",)),
        (BlockMode("address", 10, (b"\xc0\0\2\1", b"\xc0\0\2\2"), ()), 0, ("192.0.2.1", "192.0.2.2"), ()),
    ],
)
def test_every_mode_answers_every_type(
    qtype: str, mode: BlockMode, rcode: int, v4: tuple[str, ...], v6: tuple[str, ...]
) -> None:
    texts = {"A": v4, "AAAA": v6}.get(qtype, ())
    found = play(BLOCKED, mode=mode).query(BLOCKED, qtype).is_blocked(rcode=rcode).replies(*texts, rcode=rcode).reply
    assert bool(found.authority) == (not texts and rcode == 0)
    assert all(rrset.ttl == 10 for rrset in found.answer)


@pytest.mark.parametrize("name", ["use-application-dns.net", "mask.icloud.com", "x.mask.icloud.com"])
@pytest.mark.parametrize("qtype", TYPES)
def test_canary_and_relay_names_are_nxdomain_whatever_the_mode(name: str, qtype: str) -> None:
    play(mode=NULL).query(name, qtype).replies(rcode=3).forwards_nothing()


@pytest.mark.parametrize("name", ["resolver.arpa", "_dns.resolver.arpa"])
@pytest.mark.parametrize("qtype", ["SVCB", "A", "DS"])
def test_designated_resolvers_are_nodata(name: str, qtype: str) -> None:
    play(mode=NULL).query(name, qtype).replies().forwards_nothing()
    play().query("xresolver.arpa", qtype).is_forwarded()


def test_flags_change_nothing_about_a_block() -> None:
    for flags in (0, dns.flags.RD, dns.flags.CD, dns.flags.AD, dns.flags.CD | dns.flags.AD):
        found = play(BLOCKED).query(BLOCKED, flags=flags).is_blocked().reply
        assert found.flags & dns.flags.CD == flags & dns.flags.CD
        assert found.flags & dns.flags.RD == flags & dns.flags.RD


@pytest.mark.parametrize("mode", [BlockMode("nxdomain", 10), NULL, BlockMode("address", 10, (b"\xc0\0\2\1",) * 40)])
def test_a_block_that_fits_nowhere_is_a_block_without_its_reason_or_truncated(mode: BlockMode) -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 40, BLOCKED])
    found = play(name, mode=mode).query(name, payload=512).reply
    assert len(found.question) == 1
    if mode.kind == "address":
        assert found.flags & dns.flags.TC
    else:
        assert (found.flags & dns.flags.TC, found.options) == (0, ())
        assert found.answer or found.authority
    play(name, mode=mode).query(name, payload=512, udp=False).is_blocked(name, rcode=3 if mode.kind == "nxdomain" else 0)


def test_block_ttl_is_what_the_reply_says() -> None:
    found = play(BLOCKED, mode=BlockMode("nxdomain", 77)).query(BLOCKED).is_blocked().reply
    assert (found.authority[0].ttl, found.authority[0][0].minimum) == (77, 77)


def test_special_names_come_before_allow_and_block() -> None:
    for listed in ("localhost", "local", "resolver.arpa", "onion"):
        name = f"x.{listed}"
        found = play(listed).query(name).forwards_nothing()
        assert found.settled[0].attempt is None
        play(allow=name).query(name).forwards_nothing()


def test_allow_comes_before_canary_and_block() -> None:
    play(BLOCKED, allow="www.alipay.example").query("www.alipay.example").is_forwarded()
    play(allow="use-application-dns.net").query("use-application-dns.net").is_forwarded()


def test_a_dot_inside_a_label_is_no_separator() -> None:
    label = b"\x0ealipay.example\0\0\1\0\1"
    play(BLOCKED).packet(HEADER + label).is_forwarded()


@pytest.mark.parametrize(
    ("name", "qtype", "rcode"),
    [
        ("localhost", "A", 0), ("x.localhost", "AAAA", 0), ("host.onion", "A", 3), ("x.invalid", "A", 3),
        ("printer.local", "A", 3),
        ("box.home.arpa", "A", 3), ("1.0.0.10.in-addr.arpa", "PTR", 3),
    ],
)  # fmt: skip
def test_special_names_never_leave_the_gateway(name: str, qtype: str, rcode: int) -> None:
    assert play().query(name, qtype).forwards_nothing().reply.rcode() == rcode
