"""The query pipeline as plays: gates, blocks, answers that lead somewhere, upstreams in trouble."""

import itertools

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from embargo import message, names
from embargo.engine import MAX_WAITING, Joined, Zones
from embargo.fastpath import BlockMode
from embargo.upstream import PLAIN_FOR, Server, Upstreams
from support.playbook import NULL, SERVERS, Play, answer, play, query, rules

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


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_allowed_answer_comes_back_unchanged_but_for_the_ttl_cap() -> None:
    made = answer("free.test", "A", "192.0.2.80", "192.0.2.81", ttl=86400)
    found = play(BLOCKED).query("free.test").is_forwarded().upstream(made).replies("192.0.2.80", "192.0.2.81").reply
    assert found.answer[0].ttl == 3600
    assert found.id == 4711


@pytest.mark.parametrize("length", [1, 7, 16])
def test_a_chain_of_aliases_that_ends_in_a_blocked_name_is_blocked(length: int) -> None:
    hops = ["start.test", *(f"hop{n}.test" for n in range(length - 1)), "cdn.ALIPAY.example"]
    chain = [f"{owner} CNAME {target}." for owner, target in itertools.pairwise(hops)]
    play(BLOCKED).query("start.test").upstream(answer("start.test", "A", *chain, f"{hops[-1]} A 192.0.2.1")).is_blocked()


@pytest.mark.parametrize(
    ("qtype", "record"),
    [
        ("MX", "10 mx.alipay.example."),
        ("SRV", "1 1 443 srv.alipay.example."),
        ("NS", "ns.alipay.example."),
        ("NAPTR", '1 1 "s" "x" "" naptr.alipay.example.'),
        ("SVCB", "0 svcb.alipay.example."),
        ("HTTPS", "1 https.alipay.example. alpn=h2"),
        ("CNAME", "alias.alipay.example."),
        ("A", "test DNAME alipay.example."),
    ],
)
def test_every_kind_of_target_is_judged(qtype: str, record: str) -> None:
    play(BLOCKED).query("free.test", qtype).upstream(answer("free.test", qtype, record)).is_blocked()


@pytest.mark.parametrize(
    ("qtype", "record", "rule"),
    [
        ("A", "203.0.113.7", "203.0.113.0/24"),
        ("AAAA", "2001:db8:99::1", "2001:db8:99::/48"),
        ("AAAA", "::ffff:203.0.113.7", "203.0.113.0/24"),
        ("AAAA", "64:ff9b::cb00:7107", "203.0.113.0/24"),
        ("AAAA", "2002:cb00:7107::1", "203.0.113.0/24"),
        ("HTTPS", "1 . ipv4hint=203.0.113.7", "203.0.113.0/24"),
        ("SVCB", "1 svc.test. ipv6hint=2001:db8:99::1", "2001:db8:99::/48"),
    ],
)
def test_every_way_to_a_blocked_network_is_judged(qtype: str, record: str, rule: str) -> None:
    entries = ("203.0.113.0/24", "2001:db8:99::/48")
    play(*entries).query("free.test", qtype).upstream(answer("free.test", qtype, record)).is_blocked(rule)


def test_a_reverse_name_may_point_at_a_blocked_one() -> None:
    """A PTR record leads nobody anywhere; it tells who reads a log what the address is."""
    play(BLOCKED).query("7.2.0.192.in-addr.arpa", "PTR").upstream(
        answer("7.2.0.192.in-addr.arpa", "PTR", "ptr.alipay.example.")
    ).replies("ptr.alipay.example.")


def test_an_allowed_name_passes_whatever_it_leads_to_and_its_addresses_are_told() -> None:
    entries = (BLOCKED, "203.0.113.0/24")
    made = answer("good.test", "A", "good.test CNAME cdn.alipay.example.", "cdn.alipay.example A 203.0.113.7", ttl=60)
    found = play(*entries, allow="good.test").query("good.test").upstream(made)
    assert found.reply.rcode() == 0
    assert found.settled[0].passing == ((b"\xcb\0\x71\7", 60),)
    assert found.settled[0].attempt is None


def test_an_allowed_alias_passes_with_all_that_it_leads_to() -> None:
    entries = (BLOCKED, "203.0.113.0/24")
    chain = ("www.test CNAME good.test.", "good.test CNAME cdn.alipay.example.", "cdn.alipay.example A 203.0.113.7")
    found = play(*entries, allow="good.test").query("www.test").upstream(answer("www.test", "A", *chain, ttl=60))
    found.replies("203.0.113.7", "cdn.alipay.example.", "good.test.")
    assert found.settled[0].passing == ((b"\xcb\0\x71\7", 60),)
    detour = ("www.test CNAME cdn.alipay.example.", "cdn.alipay.example CNAME good.test.", "good.test A 192.0.2.1")
    play(*entries, allow="good.test").query("www.test").upstream(answer("www.test", "A", *detour)).is_blocked()


def test_an_allowed_name_goes_the_whole_way_from_the_cache_too() -> None:
    made = answer("good.test", "A", "203.0.113.7", ttl=60)
    found = play("203.0.113.0/24", allow="good.test").query("good.test").upstream(made)
    for _ in range(3):
        found.query("good.test").forwards_nothing().replies("203.0.113.7")
        assert (found.was_fast, len(found.settled[0].passing)) == (False, 1)


def test_what_leads_nowhere_comes_from_the_cache_by_the_short_way() -> None:
    found = play(BLOCKED).query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    assert found.query("Free.test", ident=7).was_fast
    found.adopt(rules("free.test", number=2)).query("free.test").is_blocked("free.test")
    found.adopt(rules(BLOCKED, number=3)).query("free.test").replies("192.0.2.1")
    assert not found.was_fast, "this judgement has not seen it yet"
    assert found.query("free.test").was_fast


@pytest.mark.parametrize("record", ["MX 10 mx.alipay.example.", "TXT free", "A 192.0.2.1"])
def test_a_cached_answer_is_blocked_when_the_policy_changes(record: str) -> None:
    qtype, _, text = record.partition(" ")
    entries = (BLOCKED, "192.0.2.1", "=free.test") if qtype == "TXT" else (BLOCKED, "192.0.2.1")
    found = play("other.example").query("free.test", qtype).upstream(answer("free.test", qtype, text))
    assert found.query("free.test", qtype).was_fast
    found.adopt(rules(*entries, number=2)).query("free.test", qtype).forwards_nothing()
    assert found.reply.rcode() == dns.rcode.NXDOMAIN


def test_rules_that_change_while_the_upstream_is_asked_are_in_force_for_its_answer() -> None:
    found = play("other.example").query("free.test").adopt(rules("free.test", number=2))
    found.upstream(answer("free.test", "A", "192.0.2.1")).is_blocked("free.test")


def test_when_everything_is_logged_every_answer_is_told() -> None:
    found = play(BLOCKED)
    found.engine.log_all = True
    found.query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    for _ in range(2):
        attempt = found.settled[0].attempt
        assert attempt is not None
        assert (attempt.decision, attempt.action, attempt.audit) == (None, "pass", False)
        assert not found.query("free.test").was_fast


def test_audit_tells_where_an_answer_leads() -> None:
    made = answer("www.test", "A", "www.test CNAME cdn.alipay.example.", "cdn.alipay.example A 192.0.2.1")
    found = play(BLOCKED, audit=True).query("www.test").upstream(made).replies("192.0.2.1", "cdn.alipay.example.")
    attempt = found.settled[0].attempt
    assert attempt is not None
    assert attempt.decision is not None
    assert (attempt.audit, attempt.decision.rule) == (True, BLOCKED)
    assert not found.query("www.test").was_fast


def test_audit_lets_pass_and_tells() -> None:
    found = play(BLOCKED, audit=True).query(BLOCKED).is_forwarded().upstream(answer(BLOCKED, "A", "192.0.2.1"))
    attempt = found.replies("192.0.2.1").settled[0].attempt
    assert attempt is not None
    assert (attempt.audit, attempt.action) == (True, "pass")


def test_a_policy_change_acts_on_cached_answers_at_once() -> None:
    made = answer("www.test", "A", "www.test CNAME cdn.alipay.example.", "cdn.alipay.example A 192.0.2.1")
    found = play("other.example").query("www.test").upstream(made).replies("192.0.2.1", "cdn.alipay.example.")
    found.query("www.test").forwards_nothing().replies("192.0.2.1", "cdn.alipay.example.")
    found.adopt(rules(BLOCKED, number=2)).query("www.test").is_blocked().forwards_nothing()
    found.adopt(rules("other.example", number=3)).query("www.test").replies("192.0.2.1", "cdn.alipay.example.")


# ── cache ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cached_answer_ages_and_is_asked_for_anew_when_it_is_old() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=100))
    assert found.later(40).query("FREE.test").forwards_nothing().reply.answer[0].ttl == 60
    assert str(found.reply.question[0].name) == "FREE.test."
    found.later(61).query("free.test").is_forwarded()


def test_a_negative_answer_is_kept_for_the_soas_minimum() -> None:
    made = answer("none.test", "A", rcode=3)
    made.authority.append(dns.rrset.from_text("test.", 900, "IN", "SOA", "ns.test. mail.test. 1 2 3 4 30"))
    found = play().query("none.test").upstream(made).replies(rcode=3)
    found.later(29).query("none.test").forwards_nothing().replies(rcode=3)
    found.later(2).query("none.test").is_forwarded()


def test_types_and_dnssec_bits_are_cached_apart() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1"))
    found.query("free.test", "AAAA").is_forwarded()
    found.query("free.test", do=True).is_forwarded()
    found.query("free.test", flags=dns.flags.RD | dns.flags.CD).is_forwarded()


def test_ttl_zero_and_errors_are_not_cached() -> None:
    found = play().query("free.test").upstream(answer("free.test", "A", "192.0.2.1", ttl=0)).replies("192.0.2.1")
    found.query("free.test").is_forwarded()


# ── upstreams ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_questions_are_merged() -> None:
    found = play().query("free.test").is_forwarded()
    found.query("free.TEST", ident=1)
    assert isinstance(found.outcome, Joined)
    found.upstream(answer("free.test", "A", "192.0.2.1"))
    assert [reply.wire[:2] for reply in found.settled] == [(4711).to_bytes(2), b"\0\1"]


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_server_that_cannot_help_is_followed_by_the_next(rcode: int) -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0]).upstream(answer("free.test", rcode=rcode))
    found.is_forwarded(SERVERS[1]).upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_silence_is_followed_by_the_next_and_the_silent_one_is_set_aside() -> None:
    found = play().query("free.test").is_forwarded(SERVERS[0]).silence().is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")
    found.query("other.test").is_forwarded(SERVERS[1])
    found.upstream(answer("other.test", "A", "192.0.2.1")).later(60)
    found.query("third.test").is_forwarded(SERVERS[0])


def test_when_nobody_answers_the_client_is_told_within_five_seconds() -> None:
    found = play().query("free.test")
    while found.forward is not None and found.engine.pending:
        found.silence()
    assert found.now <= 1005.0
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 22
    found = play().query("free.test").upstream(answer("free.test", rcode=2)).upstream(answer("free.test", rcode=2))
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23


def test_a_truncated_response_is_asked_for_over_tcp() -> None:
    found = play().query("free.test").upstream(answer("free.test", flags=dns.flags.TC)).is_forwarded(SERVERS[0], tcp=True)
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_a_server_that_does_not_know_edns_is_asked_without() -> None:
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.FORMERR)).is_forwarded(SERVERS[0])
    assert found.forward is not None
    assert not found.forward.edns
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_a_server_that_does_not_know_edns_is_spared_it_for_a_while_and_then_tried_again() -> None:
    def edns(found: Play) -> bool:
        assert found.forward is not None
        return found.forward.edns

    good = answer("free.test", "A", "192.0.2.1", ttl=0)
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.NOTIMP)).upstream(good)
    for seconds, expected in ((1, False), (PLAIN_FOR - 2, False), (2, True)):
        assert edns(found.later(seconds).query("free.test")) == expected
        found.upstream(good)
    assert edns(found.query("free.test")), "it knows EDNS now"


def test_a_server_that_cannot_read_our_question_at_all_is_followed_by_the_next() -> None:
    formerr = answer("free.test", rcode=dns.rcode.FORMERR)
    found = play().query("free.test").upstream(formerr).is_forwarded(SERVERS[0]).upstream(formerr).is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0))
    assert found.query("free.test").is_forwarded(SERVERS[1]).engine.zones.default.health[SERVERS[0]].plain_until == 0.0


BROKEN = answer("free.test", "A", "192.0.2.1").to_wire()[:-3]


def test_a_malformed_response_is_passed_over_until_the_right_one_comes() -> None:
    """CVE-2023-28452, CVE-2023-29483: who answers first with rubbish must not make us give up."""
    found = play().query("free.test")
    for _ in range(50):
        found.garbage(BROKEN)
    found.upstream(answer("free.test", "A", "192.0.2.1")).replies("192.0.2.1")


def test_when_only_malformed_responses_come_the_next_server_is_asked() -> None:
    found = play().query("free.test").garbage(BROKEN).silence().is_forwarded(SERVERS[1]).garbage(BROKEN).silence()
    assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert "malformed" in str(found.reply.options[0])


def test_a_malformed_response_over_tcp_is_the_servers_failure() -> None:
    tcp = Server("192.0.2.77", 53, tcp=True)
    found = play(zones=Zones(Upstreams((tcp, SERVERS[0])))).query("free.test").is_forwarded(tcp, tcp=True)
    found.upstream(BROKEN).is_forwarded(SERVERS[0], tcp=False)


def test_a_response_that_is_truncated_over_tcp_too_is_the_servers_failure() -> None:
    truncated = answer("free.test", flags=dns.flags.TC)
    found = play().query("free.test").upstream(truncated).is_forwarded(SERVERS[0], tcp=True)
    found.upstream(truncated).is_forwarded(SERVERS[1], tcp=False)


def test_other_servers_in_place_of_an_answer_are_no_answer() -> None:
    made = answer("free.test")
    made.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.test."))
    play().query("free.test").upstream(made).is_forwarded(SERVERS[1])


def test_a_name_that_no_server_can_resolve_is_nobodys_fault() -> None:
    found = play()
    servfail = answer("broken.test", rcode=dns.rcode.SERVFAIL)
    for _ in range(3):
        found.query("broken.test").is_forwarded(SERVERS[0]).upstream(servfail).is_forwarded(SERVERS[1]).upstream(servfail)
        assert found.replies(rcode=dns.rcode.SERVFAIL).ede() == 23
    assert found.query("free.test").is_forwarded(SERVERS[0]).engine.zones.default.health[SERVERS[0]].failed == 3


def test_a_server_that_could_not_help_where_another_one_could_is_set_aside() -> None:
    found = play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.REFUSED)).is_forwarded(SERVERS[1])
    found.upstream(answer("free.test", "A", "192.0.2.1")).query("other.test").is_forwarded(SERVERS[1])
    found.later(2).query("third.test").is_forwarded(SERVERS[0])


def test_a_name_too_long_for_its_dname_is_an_answer() -> None:
    play().query("free.test").upstream(answer("free.test", rcode=dns.rcode.YXDOMAIN)).replies(rcode=dns.rcode.YXDOMAIN)


def test_each_question_costs_few_queries_whatever_happens() -> None:
    """Servers, and two more; and each of them once more over TCP or without EDNS."""
    for trouble in (answer("free.test", rcode=2), answer("free.test", rcode=1), answer("free.test", flags=dns.flags.TC), None):
        found, asked = play().query("free.test"), 0
        while found.engine.pending:
            asked += 1
            found = found.silence() if trouble is None else found.upstream(trouble)
        assert asked <= 4
        assert found.now <= 1004.6


def test_records_that_nobody_asked_for_do_not_reach_the_client_when_they_lead_somewhere_blocked() -> None:
    made = answer("free.test", "A", "192.0.2.1")
    made.additional.append(dns.rrset.from_text("cdn.alipay.example.", 60, "IN", "A", "192.0.2.66"))
    found = play(BLOCKED).query("free.test").upstream(made).replies("192.0.2.1").reply
    assert not found.additional


def test_large_answers_are_truncated_over_udp_and_whole_over_tcp() -> None:
    made = answer("free.test", "TXT", *(f'"{n:>200}"' for n in range(20)))
    found = play().query("free.test", "TXT").upstream(made).reply
    assert found.flags & dns.flags.TC
    assert not found.answer
    found = play().query("free.test", "TXT", udp=False).upstream(made).reply
    assert len(found.answer[0]) == 20


def test_conditional_zones_and_local_records() -> None:
    inside = Server("192.0.2.99", 53)
    zones = Zones(
        Upstreams(SERVERS), {names.from_text("corp.test"): Upstreams((inside,))},
        {names.from_text("nas.lan"): (b"\xc0\0\2\7",)}, {names.reverse(b"\xc0\0\2\7"): names.from_text("nas.lan")},
    )  # fmt: skip
    play(zones=zones).query("host.corp.test").is_forwarded(inside)
    play(zones=zones).query("free.test").is_forwarded(SERVERS[0])
    play(zones=zones).query("nas.lan").replies("192.0.2.7").forwards_nothing()
    play(zones=zones).query("nas.lan", "AAAA").replies().forwards_nothing()
    play(zones=zones).query("7.2.0.192.in-addr.arpa", "PTR").replies("nas.lan.").forwards_nothing()
    play("nas.lan", zones=zones).query("nas.lan").is_blocked("nas.lan")


def test_a_flood_of_questions_is_bounded() -> None:
    found = play()
    for number in range(1000):
        found.query(f"n{number}.test").is_forwarded()
    assert found.query("one.too.many.test").replies(rcode=dns.rcode.SERVFAIL).engine.pending == 1000
    assert found.query("n1.test").outcome == Joined()


def test_clients_that_wait_are_bounded_and_the_rest_is_told() -> None:
    found = play().query("free.test")
    for ident in range(1, MAX_WAITING):
        found.query("free.test", ident=ident)
    assert found.query("free.test", edns=False).replies(rcode=dns.rcode.SERVFAIL).engine.pending == 1
    assert len(found.upstream(answer("free.test", "A", "192.0.2.1", ttl=0)).settled) == MAX_WAITING
    found.query("free.test").is_forwarded().query("free.test")
    assert found.outcome == Joined()


def test_without_an_upstream_the_client_is_told_so() -> None:
    found = Play(rules(BLOCKED), Zones(Upstreams(()))).query("free.test").replies(rcode=dns.rcode.SERVFAIL)
    assert "no upstream" in str(found.reply.options[0])
    assert found.reply.question[0].rdtype == dns.rdatatype.A
