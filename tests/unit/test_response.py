"""What an upstream sends: matched, taken apart, and rid of what nobody asked for. dnspython builds and judges."""

import itertools
import struct

import dns.flags
import dns.message
import dns.rrset
import pytest

from embargo import names
from embargo.dns import message, response
from embargo.dns.message import Answer, Lead
from embargo.errors import MessageError
from support import twins
from support.playbook import answer, query
from support.responses import SOA, add, parse, passed_on, question_of, texts

# ── matching ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, 12, 13, 20, 22, 24])
def test_a_response_matches_in_every_octet_that_counts(place: int) -> None:
    asked = message.own_question(message.parse_query(query("free.test")))
    wire = bytearray(answer("free.test", "A", "192.0.2.1").to_wire())
    ident = int.from_bytes(wire[:2])
    assert response.matches(bytes(wire), ident, asked)
    wire[place] ^= 0x80 if place == 2 else 1
    assert not response.matches(bytes(wire), ident, asked)


@pytest.mark.parametrize("bit", [0x08, 0x10, 0x20, 0x40])
def test_another_opcode_is_malformed(bit: int) -> None:
    asked = message.own_question(message.parse_query(query("free.test")))
    wire = bytearray(answer("free.test", "A", "192.0.2.1").to_wire())
    wire[2] |= bit
    assert response.matches(bytes(wire), int.from_bytes(wire[:2]), asked)
    with pytest.raises(MessageError):
        response.parse(bytes(wire), asked)


@pytest.mark.parametrize("qtype", ["A", "HTTPS", "TYPE97"])
def test_the_question_may_come_back_in_other_letters(qtype: str) -> None:
    """RFC 4343; but the octets behind the name are no letters: HTTPS is 65, an upper case A."""
    asked = message.own_question(message.parse_query(query("free.test", qtype)))
    wire = bytearray(answer("free.test", qtype).to_wire())
    wire[13:17], wire[18:20] = b"FReE", b"TE"
    assert response.matches(bytes(wire), int.from_bytes(wire[:2]), asked)
    wire[len(asked) + 12 - 3] ^= 0x20
    assert not response.matches(bytes(wire), int.from_bytes(wire[:2]), asked)


@pytest.mark.parametrize("rcode", range(16))
def test_an_error_may_come_without_the_question_and_nothing_else(rcode: int) -> None:
    wire = b"\x12\x34\x80" + bytes([rcode]) + bytes(8)
    matches = response.matches(wire, 0x1234, b"\4free\4test\0\0\1\0\1")
    assert matches == (rcode in (1, 2, 4, 5))
    if matches:
        assert response.parse(wire, b"\4free\4test\0\0\1\0\1") == Answer(rcode)


def test_an_error_without_the_question_brings_no_records() -> None:
    record = b"\0\0\1\0\1\0\0\0\1\0\4\1\2\3\4"
    assert not response.matches(b"\x12\x34\x80\2\0\0\0\1\0\0\0\0" + record, 0x1234, b"\4free\4test\0\0\1\0\1")
    assert not response.matches(b"\x12\x34\x80\2\0\0", 0x1234, b"\4free\4test\0\0\1\0\1")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ttls_are_capped_and_the_lifetime_is_the_shortest() -> None:
    found = parse(answer("a.test", "A", "192.0.2.1", ttl=86400))
    assert (found.lifetime, found.ttls[0][1]) == (response.MAX_TTL, response.MAX_TTL)
    made = add(answer("a.test", "A", "a.test CNAME b.test.", ttl=20), "answer", "b.test A 192.0.2.2")
    assert parse(made).lifetime == 20


def test_a_ttl_with_its_highest_bit_set_is_zero() -> None:
    wire = bytearray(answer("a.test", "A", "192.0.2.1").to_wire())
    at = wire.index(b"\xc0\0\2\1") - 6
    wire[at] = 0x80
    found = response.parse(bytes(wire), bytes(wire[12:24]))
    assert (found.lifetime, found.ttls) == (0, ((6, 0),))
    assert found.body[6:10] == bytes(4)


@pytest.mark.parametrize(("ttl", "minimum", "lifetime"), [(900, 30, 30), (20, 30, 20), (90000, 80000, 3600)])
@pytest.mark.parametrize("rcode", [0, 3])
def test_what_does_not_exist_is_remembered_for_the_lesser_of_ttl_and_minimum(
    ttl: int, minimum: int, lifetime: int, rcode: int
) -> None:
    made = add(answer("a.test", "A", rcode=rcode), "authority", f"test SOA ns.test. mail.test. 1 2 3 4 {minimum}", ttl=ttl)
    found = parse(made)
    assert (found.rcode, found.lifetime) == (rcode, lifetime)
    assert passed_on(made).authority[0].ttl == lifetime, "nobody behind us may keep it for longer"


def test_what_does_not_exist_is_remembered_for_a_moment_without_a_soa() -> None:
    assert parse(answer("a.test", "A", rcode=3)).lifetime == response.UNPROVEN_TTL
    assert parse(answer("a.test", "A")).lifetime == response.UNPROVEN_TTL


@pytest.mark.parametrize("rcode", [0, 3])
def test_an_alias_to_what_does_not_exist_lives_for_the_shortest_of_all(rcode: int) -> None:
    def made(ttl: int) -> dns.message.Message:
        alias = answer("a.test", "A", "a.test CNAME b.test.", ttl=ttl, rcode=rcode)
        return add(alias, "authority", f"test SOA {SOA}", ttl=900)

    assert parse(made(5)).lifetime == 5
    assert parse(made(500)).lifetime == 30
    without = [answer("a.test", "A", "a.test CNAME b.test.", rcode=rcode, ttl=ttl) for ttl in (3, 300)]
    assert [parse(each).lifetime for each in without] == [3, response.UNPROVEN_TTL]


def test_errors_are_not_remembered() -> None:
    made = add(answer("a.test", "A", "192.0.2.1", rcode=2), "authority", f"test SOA {SOA}")
    assert parse(made).lifetime == 0


def test_a_soa_that_is_the_answer_keeps_its_ttl() -> None:
    assert parse(answer("test", "SOA", SOA, ttl=600)).lifetime == 600


# ── what belongs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_ordinary_response_passes_octet_by_octet() -> None:
    made = answer("www.a.test", "A", "www.a.test CNAME b.test.", "b.test A 192.0.2.1", "b.test A 192.0.2.2")
    add(made, "authority", "b.test NS ns.b.test.")
    add(made, "additional", "ns.b.test A 192.0.2.53", "ns.b.test AAAA 2001:db8::53")
    wire = made.to_wire()
    found = parse(made)
    assert found.counts == (3, 1, 2)
    assert found.body == wire[12 + len(question_of(wire)) : -11], "all but the OPT record"
    assert texts(passed_on(made).additional) == ["ns.b.test. A 192.0.2.53", "ns.b.test. AAAA 2001:db8::53"]


FOREIGN = (
    "bank.test A 203.0.113.66", "b.test TXT hello", "test NS ns.evil.test.", "a.test MX 10 mx.evil.test.",
    "b.test NS ns.evil.test.", "evil.test CNAME a.test.", "x.b.test A 203.0.113.66",
)  # fmt: skip


@pytest.mark.parametrize("record", FOREIGN)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_records_in_the_answer_that_do_not_belong_to_the_question_are_left_out(record: str, place: int) -> None:
    records = ["a.test CNAME b.test.", "b.test A 192.0.2.1"]
    clean = passed_on(answer("a.test", "A", *records))
    records.insert(place, record)
    made = answer("a.test", "A", *records)
    assert texts(passed_on(made).answer) == texts(clean.answer)
    assert parse(made).leads == parse(answer("a.test", "A", "a.test CNAME b.test.", "b.test A 192.0.2.1")).leads


@pytest.mark.parametrize(
    ("qtype", "record"),
    [
        ("MX", "10 mx.b.test."), ("SRV", "1 2 3 srv.b.test."), ("SOA", "ns.b.test. mail.b.test. 1 2 3 4 5"),
        ("PTR", "p.b.test."), ("NS", "ns.b.test."), ("RP", "mail.b.test. text.b.test."), ("AFSDB", "1 afs.b.test."),
        ("TXT", '"free text"'),
        ("NAPTR", '1 2 "s" "SIP+D2U" "" naptr.b.test.'), ("HTTPS", "1 svc.b.test. alpn=h2 ipv4hint=192.0.2.1"),
        ("CAA", '0 issue "ca.b.test"'), ("PX", "1 one.b.test. two.b.test."), ("TYPE65399", r"\# 3 c00c00"),
    ],
)  # fmt: skip
def test_a_rewritten_answer_has_the_same_records(qtype: str, record: str) -> None:
    """A foreign record before it moves everything, so names that were compressed are written out."""
    clean = answer("a.b.test", qtype, record)
    dirty = answer("a.b.test", qtype)
    add(dirty, "answer", "bank.b.test A 203.0.113.66")
    dirty.answer += clean.answer
    assert passed_on(dirty).answer == passed_on(clean).answer
    assert parse(dirty).lifetime == 300


def test_ttls_of_a_rewritten_answer_stand_at_their_offsets() -> None:
    found = parse(add(answer("a.test", "A"), "answer", "bank.test A 203.0.113.66", "a.test A 192.0.2.1", "a.test A 192.0.2.2"))
    assert found.counts == (2, 0, 0)
    for offset, ttl in found.ttls:
        assert int.from_bytes(found.body[offset : offset + 4]) == ttl == 300


@pytest.mark.parametrize("qtype", ["AAAA", "HTTPS", "A", "TYPE65280"])
@pytest.mark.parametrize("record", ["a.test TXT hi", "bank.test A 203.0.113.66", f"test SOA {SOA}", "*.test A 192.0.2.1"])
def test_a_response_that_speaks_of_something_else_alone_says_that_there_is_nothing(qtype: str, record: str) -> None:
    """Unbound, Recursor, dnsmasq and dnsdist use it; BIND does not. It is no referral, whatever else it has."""
    made = add(answer("a.test", qtype, record, flags=dns.flags.AD), "authority", "test NS ns.test.")
    add(made, "additional", "ns.test A 192.0.2.53")
    found = parse(made)
    assert (found.rcode, found.counts, found.leads, found.extra_leads) == (0, (0, 0, 0), (), ())
    assert (found.referral, found.lifetime, found.flags) == (False, response.UNPROVEN_TTL, 0)
    assert texts(passed_on(add(made, "authority", f"test SOA {SOA}")).authority) == [f"test. SOA {SOA}"]


def test_an_answer_of_another_class_does_not_belong() -> None:
    made = answer("a.test", "A", "192.0.2.1")
    made.answer.append(dns.rrset.from_text("a.test.", 300, "CH", "TXT", "version"))
    assert parse(made).counts == (1, 0, 0)


def test_order_does_not_matter_to_what_belongs() -> None:
    made = answer("a.test", "A", "c.test A 192.0.2.1", "b.test CNAME c.test.", "a.test CNAME b.test.")
    assert parse(made).counts == (3, 0, 0)


def test_a_dname_and_its_alias_belong() -> None:
    made = answer("x.old.test", "A", "old.test DNAME new.test.", "x.old.test CNAME x.new.test.", "x.new.test A 192.0.2.1")
    assert parse(made).counts == (3, 0, 0)
    made = answer("x.old.test", "A", "old.test DNAME new.test.", "x.new.test A 192.0.2.1")
    assert parse(made).counts == (2, 0, 0), "also when the server leaves its alias out"


def test_signatures_belong_to_what_they_sign() -> None:
    signature = "RRSIG A 8 2 300 20300101000000 20200101000000 1 test. AAAA"
    made = answer("a.test", "A", "192.0.2.1", f"a.test {signature}", f"bank.test {signature}")
    assert parse(made).counts == (2, 0, 0)


def test_a_query_for_anything_gets_everything_at_the_name() -> None:
    made = answer("a.test", "ANY", "a.test A 192.0.2.1", "a.test TXT hello", "b.test A 192.0.2.2")
    assert parse(made).counts == (2, 0, 0)


def test_a_query_for_an_alias_follows_none() -> None:
    assert parse(answer("a.test", "CNAME", "b.test.", "b.test CNAME c.test.")).counts == (1, 0, 0)


@pytest.mark.parametrize("zone", ["a.b.test", "b.test", "test"])
def test_the_authority_section_may_speak_of_the_zones_above(zone: str) -> None:
    made = add(answer("a.b.test", "A", rcode=3), "authority", f"{zone} SOA {SOA}")
    assert parse(made).counts == (0, 1, 0)
    made = answer("a.b.test", "A", rcode=3)
    made.authority.append(dns.rrset.from_text(".", 300, "IN", "SOA", SOA))
    assert parse(made).counts == (0, 1, 0)


@pytest.mark.parametrize("record", [f"bank.test SOA {SOA}", "bank.test NS ns.evil.test.", "a.test A 192.0.2.66", "test TXT x"])
def test_the_authority_section_may_speak_of_nothing_else(record: str) -> None:
    made = add(answer("a.test", "A", rcode=3), "authority", record, f"test SOA {SOA}")
    assert texts(passed_on(made).authority) == [f"test. SOA {SOA}"]
    assert parse(made).lifetime == 30


def test_proofs_that_something_does_not_exist_pass() -> None:
    made = add(answer("m.test", "A", rcode=3), "authority", f"test SOA {SOA}", "b.test NSEC z.test. A RRSIG NSEC")
    assert parse(made).counts == (0, 2, 0)


def test_the_additional_section_may_speak_of_what_the_others_point_to() -> None:
    made = answer("a.test", "MX", "10 mx.test.")
    add(
        made,
        "additional",
        "mx.test A 192.0.2.25",
        "mx.test AAAA 2001:db8::25",
        "bank.test A 203.0.113.66",
        "a.test A 192.0.2.1",
    )
    assert texts(passed_on(made).additional) == ["mx.test. A 192.0.2.25", "mx.test. AAAA 2001:db8::25"]


def test_a_service_that_points_to_itself_may_bring_its_own_addresses() -> None:
    made = add(answer("a.test", "HTTPS", "1 . alpn=h2"), "additional", "a.test A 192.0.2.1")
    assert parse(made).counts == (1, 0, 1)


def opt(owner: bytes = b"\0", rcode: int = 0, data: bytes = b"") -> bytes:
    return owner + struct.pack("!HHBBHH", 41, 1232, rcode >> 4, 0, 0, len(data)) + data


def with_records(section: int, *records: bytes, before: bool = False) -> bytes:
    """A response without an OPT record of its own, and these records in a section."""
    made = add(answer("a.test", "MX", "10 mx.test."), "authority", "test NS ns.test.")
    add(made, "additional", "mx.test A 192.0.2.25")
    made.use_edns(False)
    wire = bytearray(made.to_wire())
    ends = [wire.index(b"\2mx\xc0") + 5, wire.index(b"\2ns\xc0") + 5, len(wire)]
    at = ends[section - 1] if before and section else ends[section]
    wire[at:at] = b"".join(records)
    wire[7 + 2 * section] += len(records)
    return bytes(wire)


@pytest.mark.parametrize(
    "records", [[opt()], [opt(), opt()], [opt(b"\1x\0")], [opt(), opt(rcode=16)], [opt(data=b"\0\x0f\0\x09\0")]]
)
@pytest.mark.parametrize("section", [0, 1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_opt_records_are_left_out_wherever_they_stand_and_whatever_they_have(
    records: list[bytes], section: int, before: bool
) -> None:
    """As five of five other resolvers have it in the additional section, and three in the others."""
    wire = with_records(section, *records, before=before and section > 0)
    found = response.parse(wire, question_of(wire))
    asked = message.parse_query(query("a.test", "MX"))
    passed = dns.message.from_wire(message.reply(asked, found, udp=False))
    clean = with_records(0)
    expected = dns.message.from_wire(message.reply(asked, response.parse(clean, question_of(clean)), udp=False))
    assert (passed.answer, passed.authority, passed.additional) == (expected.answer, expected.authority, expected.additional)
    assert found.rcode == 0


def test_the_extended_rcode_counts() -> None:
    made = answer("a.test", "A", rcode=16)
    assert parse(made).rcode == 16


def test_other_servers_in_place_of_an_answer_are_a_referral() -> None:
    made = add(answer("a.b.test", "A"), "authority", "b.test NS ns.b.test.")
    assert parse(made).referral
    made.flags |= dns.flags.AA
    assert not parse(made).referral
    assert not parse(add(answer("a.b.test", "A"), "authority", f"b.test SOA {SOA}", "b.test NS ns.b.test.")).referral
    assert not parse(add(answer("a.b.test", "A", "192.0.2.1"), "authority", "b.test NS ns.b.test.")).referral


def test_answer_only_leaves_the_other_sections_out() -> None:
    made = answer("a.test", "A", "a.test CNAME b.test.", "b.test A 192.0.2.1", flags=dns.flags.AD)
    add(made, "authority", "b.test NS ns.b.test.")
    add(made, "additional", "ns.b.test A 192.0.2.53")
    short = message.answer_only(parse(made))
    asked = message.parse_query(query("a.test"))
    found = dns.message.from_wire(message.reply(asked, short))
    assert texts(found.answer) == ["a.test. CNAME b.test.", "b.test. A 192.0.2.1"]
    assert not found.authority
    assert not found.additional
    assert len(short.ttls) == 2
    assert not short.flags & message.AD
    nothing = message.answer_only(parse(add(answer("a.test", "A", rcode=3), "authority", f"test SOA {SOA}")))
    assert (nothing.counts, nothing.body, nothing.ttls) == ((0, 0, 0), b"", ())


# ── where it leads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_records_lead() -> None:
    made = answer("a.test", "HTTPS", "1 d.test. ipv4hint=192.0.2.2 ipv6hint=2001:db8::2", "a.test HTTPS 2 e.test.")
    add(made, "additional", "d.test A 192.0.2.3")
    found = parse(made)
    a, d, e = (names.from_text(f"{each}.test") for each in "ade")
    assert found.leads == (Lead(a, (d, e), (b"\xc0\0\2\2", b"\x20\1\r\xb8" + bytes(11) + b"\2")),)
    assert found.extra_leads == (Lead(d, (), (b"\xc0\0\2\3",)),)


@pytest.mark.parametrize("accelerated", [True, False])
def test_records_that_point_nowhere_lead_nowhere(accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not accelerated:
        twins.without(monkeypatch)
    made = add(answer("a.b.test", "A", rcode=3), "authority", f"b.test SOA {SOA}")
    assert parse(made).extra_leads == ()
    add(made, "authority", "a.b.test NSEC z.b.test. A")
    assert (parse(made).extra_leads, parse(made).counts) == ((), (0, 2, 0))


@pytest.mark.parametrize("length", [1, 7, 16, 17, 40, 300])
def test_a_chain_of_aliases_is_followed(length: int) -> None:
    hops = [f"hop{n}.test" for n in range(length + 1)]
    chain = [f"{owner} CNAME {target}." for owner, target in itertools.pairwise(hops)]
    made = answer(hops[0], "A", *reversed(chain), f"{hops[-1]} A 192.0.2.1")
    assert parse(made).counts == (length + 1, 0, 0)
    assert parse(made).lifetime == 300


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 40])
def test_a_chain_that_closes_ends_there(length: int, accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of five other resolvers pass on a chain in a circle; the client sees for itself that it leads nowhere."""
    if not accelerated:
        twins.without(monkeypatch)
    hops = [*(f"hop{n}.test" for n in range(length)), "hop0.test"]
    chain = [f"{owner} CNAME {target}." for owner, target in itertools.pairwise(hops)]
    found = parse(answer("hop0.test", "A", *chain, "bank.test A 192.0.2.66"))
    assert found.counts == (length, 0, 0)
    assert found.lifetime == response.UNPROVEN_TTL
    assert parse(answer("hop0.test", "A", *chain, f"{hops[-2]} A 192.0.2.1")).lifetime == 300


def test_dnames_do_not_go_on_without_end() -> None:
    """Each makes the name longer, and together they could count to any number."""
    found = parse(answer("x.a.test", "A", "a.test DNAME b.a.test."))
    assert found.counts == (1, 0, 0)
    assert parse(answer("x.a.test", "A", "a.test DNAME b.test.", "b.test DNAME a.test.")).counts == (2, 0, 0)


@pytest.mark.parametrize("rcode", [2, 5, 9, 22])
@pytest.mark.parametrize("damaged", [False, True])
def test_an_error_is_an_error_whatever_it_brings(rcode: int, damaged: bool) -> None:
    made = answer("a.test", "A", "a.test CNAME a.test.", "a.test A 192.0.2.1", rcode=rcode)
    wire = made.to_wire()
    found = response.parse(wire[:-14] if damaged and rcode < 16 else wire, question_of(wire))
    assert found == Answer(rcode)
