"""What `embargo verify` tries and what it makes of it; with real packets: tests/netns/test_verify.py."""

import ipaddress
import random
from typing import NoReturn

import pytest
from scapy.layers import inet, inet6

from embargo import names
from embargo.firewall import ruleset
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Class, Level, Selection, Switchboard
from embargo.names import Name
from embargo.verify import crafted, packets, query, targets
from embargo.verify.addresses import embedded
from embargo.verify.packets import Probe, ProbeResult
from embargo.verify.query import Querier, Resolver
from embargo.verify.results import ResultRow, Results
from embargo.verify.sandbox import Addresses
from support import catalogue

CLIENT4 = Addresses("192.0.2.1", "169.254.213.2", "169.254.213.3")
CLIENT6 = Addresses("2001:db8::1", "fd65::2", "fd65::3")
FILES = {
    "alipay/payment.list": ["alipay.test", "=pay.test", "203.0.113.0/28", "203.0.113.32", "2001:db8::/64"],
    "alipay/core.list": [*(f"n{number}.test" for number in range(40)), "core.alipay.test"],
    "qq/payment.list": ["qq.test", "allowed.test", "203.0.113.64"],
}
ALLOW = catalogue.local(Level.ALLOW, "allowed.test", "203.0.113.64")


def compiled(selection: Selection) -> tuple[Image, Switchboard]:
    apps = catalogue.apps(FILES)
    combined = policy.combine(apps, (ALLOW,), selection)
    return Image(image.encode(combined)), policy.select(apps, combined.classes, selection)


def found(selection: Selection = Selection(apps="all", functions="all"), samples: int = 0, seed: int = 0) -> targets.Targets:
    return targets.find(*compiled(selection), samples, random.Random(seed))


def asked(of: targets.Targets, class_: Class) -> set[str]:
    return {names.to_text(target.name) for target in of.names.get(class_, ())}


# ── what is tried ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_suffix_is_queried_itself_and_below_and_an_exact_name_itself_only() -> None:
    selection = Selection(apps=("alipay",), functions=("payment",))
    assert asked(found(selection), Class("alipay", "payment")) == {
        "alipay.test", "embargo-verify.alipay.test", "pay.test",
        "core.alipay.test", "embargo-verify.core.alipay.test",  # the shorter line claims it, as the longer one is off
    }  # fmt: skip


def test_entries_that_are_off_or_allowed_are_not_tried() -> None:
    everything = found(Selection(apps="all", functions=("payment",)))
    assert set(everything.names) == {Class("alipay", "payment"), Class("qq", "payment")}
    assert asked(everything, Class("qq", "payment")) == {"qq.test", "embargo-verify.qq.test"}
    assert set(everything.ranges) == {(Class("alipay", "payment"), 4), (Class("alipay", "payment"), 6)}


def test_audited_entries_are_not_tried() -> None:
    audited = found(Selection(apps="all", functions="all", mode=policy.Action.AUDIT))
    assert (dict(audited.names), dict(audited.ranges)) == ({}, {})


def test_every_target_is_one_that_the_look_up_blocks() -> None:
    built, board = compiled(Selection(apps="all", functions="all"))
    for class_, listed in targets.find(built, board, 0, random.Random(0)).names.items():
        for target in listed:
            assert board.choose(built.lookup(target.name))[1] == target.decision
            assert built.classes[target.decision.class_] == class_


def test_a_sample_has_the_requested_size_and_is_the_same_for_the_same_seed() -> None:
    core = Class("alipay", "core")
    assert len(found().names[core]) == 82
    assert len(found(samples=5).names[core]) == 5
    assert found(samples=5, seed=1).names[core] == found(samples=5, seed=1).names[core]
    assert found(samples=5, seed=1).names[core] != found(samples=5, seed=2).names[core]
    assert len(found(samples=5).names[Class("qq", "payment")]) == 2


def test_a_name_too_long_for_a_label_below_it_is_queried_by_itself_only() -> None:
    long = ".".join(["a" * 49] * 4 + ["b" * 40])
    apps = catalogue.apps({"alipay/core.list": [long]})
    combined = policy.combine(apps, (), Selection(apps="all", functions="all"))
    board = policy.select(apps, combined.classes, Selection(apps="all", functions="all"))
    of = targets.find(Image(image.encode(combined)), board, 0, random.Random(0))
    assert asked(of, Class("alipay", "core")) == {long}


def test_an_ipv4_address_is_embedded_where_the_firewall_looks_for_it() -> None:
    assert [embedded("203.0.113.7", prefix, at) for prefix, at in ruleset.EMBEDDED] == [
        "::ffff:cb00:7107", "64:ff9b::cb00:7107", "64:ff9b:1::cb00:7107", "2002:cb00:7107::",
    ]  # fmt: skip
    for prefix, at in ruleset.EMBEDDED:
        assert image.embedded(ipaddress.ip_address(embedded("203.0.113.7", prefix, at)).packed) == b"\xcb\0\x71\7"


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_mixed_case_changes_letters_only() -> None:
    name = names.from_text("a-b9.alipay\\.x.test")
    mixed = query.mixed_case(name, 0b10101011)
    assert mixed != name
    assert Name(mixed.lower()) == name


def test_responses_to_other_questions_are_ignored() -> None:
    question = b"\4free\4test\0\0\1\0\1"
    sent = query._query(7, question)
    head = b"\0\7\x81\x80\0\1\0\1\0\0\0\0"
    answer = head + question + b"\xc0\x0c\0\1\0\1\0\0\0\x0a\0\4\xc0\0\2\x07"
    response = query._read(answer, sent, question)
    assert response is not None
    assert (response.rcode, response.answers, response.ede) == (0, ("A 192.0.2.7",), -1)
    assert query._read(b"\0\x08" + answer[2:], sent, question) is None  # another id
    assert query._read(answer.replace(b"free", b"fRee"), sent, question) is None
    assert query._read(sent, sent, question) is None  # a question
    assert query._read(answer[:-1], sent, question) is None
    assert query._read(b"", sent, question) is None


def test_a_query_without_a_response_gives_none() -> None:
    def make(_: object) -> NoReturn:
        raise OSError

    resolver = Resolver("192.0.2.1", 53, "udp", False)
    assert Querier(resolver, make).query(names.from_text("free.test"), 1) is None
    assert str(resolver) == "udp 192.0.2.1:53"
    assert str(resolver._replace(address="2001:db8::1")) == "udp [2001:db8::1]:53"


# ── packets ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def key(probe: Probe) -> object:
    return packets._key(probe)


@pytest.mark.parametrize("each", [CLIENT4, CLIENT6], ids=["ipv4", "ipv6"])
def test_every_crafted_packet_is_identified_by_its_first_fragment(each: Addresses) -> None:
    target = "203.0.113.7" if each.version == 4 else "2001:db8::7"
    for probes in crafted.crafted(each, target, 8443).values():
        for probe, sent in probes:
            seen = [packets._arrival(packet) for packet in sent]
            assert seen[0] == key(probe)
            assert not any(seen[1:])
            assert probe.form in str(probe)


def test_ordinary_packets_are_identified() -> None:
    udp4 = bytes(inet.IP(dst="203.0.113.7", src="192.0.2.1") / inet.UDP(dport=443))
    assert packets._arrival(udp4) == key(Probe("udp", "203.0.113.7", 443))
    echo6 = bytes(inet6.IPv6(dst="2001:db8::7", src="fd65::2") / inet6.ICMPv6EchoRequest())
    assert packets._arrival(echo6) == key(Probe("icmp", "2001:db8::7"))
    for size in range(20):
        assert packets._arrival(echo6[:size]) is None or size > 6


def test_an_echo_request_has_its_checksum() -> None:
    made = inet.ICMP(packets._echo(v6=False, number=513))
    sent = made.chksum
    del made.chksum
    assert inet.ICMP(bytes(made)).chksum == sent


@pytest.mark.parametrize(
    ("reaction", "arrived", "passed"),
    [("rejected", False, False), ("rejected", True, True), ("silent", True, True), ("open", False, True)],
)
def test_a_probe_that_arrives_or_is_answered_has_passed(reaction: str, arrived: bool, passed: bool) -> None:
    assert ProbeResult(Probe("tcp", "203.0.113.7", 443), reaction, arrived).passed is passed


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_worst_result_is_the_verdict_and_leaks_are_shown_first() -> None:
    row = ResultRow("alipay", "payment", "names", skipped="nothing tried yet")
    assert (row.verdict, row.detail) == ("skipped", "nothing tried yet")
    row.count("held")
    assert (row.verdict, row.detail) == ("held", "")
    row.count("unproven", "in doubt")
    assert (row.verdict, row.detail) == ("unproven", "in doubt")
    row.count("LEAK", "out")
    row.count("LEAK", "out again")
    assert (row.verdict, row.detail) == ("LEAK", "out; out again; in doubt")
    assert (row.probes, row.held, row.leaks, row.unproven) == (4, 1, 2, 1)


def test_controls_come_first_and_then_apps_and_functions() -> None:
    results = Results()
    for app, function in (("qq", "core"), ("bypass", "dot"), ("control", "-"), ("bypass", "ddr")):
        results.row(app, function, "names")
    assert [(row.app, row.function) for row in results.rows] == [
        ("control", "-"), ("bypass", "ddr"), ("bypass", "dot"), ("qq", "core"),
    ]  # fmt: skip
