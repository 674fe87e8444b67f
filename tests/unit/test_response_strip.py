"""What is left out of a response on demand: keys for Encrypted Client Hello, and private addresses."""

import ipaddress

import dns.flags
import dns.message
import pytest

from embargo.dns import message, rdata, response
from embargo.dns.upstream import Strip
from support import twins
from support.playbook import answer
from support.responses import add, question_of


def services(*texts: str) -> dns.message.Message:
    return add(answer("a.test", "HTTPS"), "answer", *(f"a.test HTTPS {text}" for text in texts))


def without_ech(*texts: str) -> list[str]:
    wire = services(*texts).to_wire()
    found = response.parse(wire, bytes(wire[12 : 12 + len(b"\1a\4test\0") + 4]), Strip(ech=True))
    query_ = message.parse_query(dns.message.make_query("a.test", "HTTPS", use_edns=True).to_wire())
    passed = dns.message.from_wire(message.reply(query_, found, udp=False))
    return [str(rdata) for rdata in passed.answer[0]]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('1 . alpn="h2" ech="AAb+DQACq7s="', '1 . alpn="h2"'),
        ('1 . mandatory="alpn,ech" alpn="h3" ech="AAb+DQACq7s="', '1 . mandatory="alpn" alpn="h3"'),
        ('1 . mandatory="ech" ech="AAb+DQACq7s=" ipv6hint="2001:db8::1"', '1 . ipv6hint="2001:db8::1"'),
        ('1 svc.test. alpn="h2" port="8443"', '1 svc.test. alpn="h2" port="8443"'),
        ("0 alias.test.", "0 alias.test."),
    ],
)  # fmt: skip
def test_keys_for_encrypted_client_hello_are_left_out_and_nothing_else(text: str, left: str) -> None:
    assert without_ech(text) == [left]
    wire = services(text).to_wire()
    assert response.parse(wire, bytes(wire[12 : 12 + 8 + 4])).body, "and only on demand"


@pytest.mark.parametrize("accelerated", [True, False])
def test_the_ad_bit_is_kept_unless_something_is_stripped(accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not accelerated:
        twins.without(monkeypatch)
    made = [services('1 . alpn="h2" ech="AAb+DQACq7s="', '2 . alpn="h2" ipv4hint="10.0.0.1"'), services('1 . alpn="h2"')]
    made += [answer("a.test", "A", "192.0.2.1"), answer("a.test", "A", "10.0.0.1")]
    for each, kept, kept_private in zip(made, (0, 1, 1, 1), (0, 1, 1, 0), strict=True):
        for flag in (dns.flags.AD, 0):
            each.flags = each.flags & ~dns.flags.AD | flag
            wire = each.to_wire()
            found = response.parse(wire, question_of(wire))
            assert found.flags == flag
            assert response.parse(wire, question_of(wire), Strip(ech=True)).flags == flag * kept
            assert response.parse(wire, question_of(wire), Strip(private=True)).flags == flag * kept_private


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("0.0.0.0", True), ("10.1.2.3", True), ("11.0.0.0", False), ("100.64.0.1", True), ("100.128.0.1", False),
        ("127.0.0.1", True), ("169.254.169.254", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.255.1", True),
        ("192.0.2.1", False), ("8.8.8.8", False), ("::", True), ("::1", True), ("::2", False), ("fc00::1", True),
        ("fdff::1", True), ("fe00::1", False), ("fe80::1", True), ("febf::1", True), ("fec0::1", False), ("2001:db8::1", False),
        ("::ffff:10.0.0.1", True), ("::ffff:8.8.8.8", False), ("64:ff9b::192.168.0.1", True), ("64:ff9b::8.8.8.8", False),
        ("2002:a00:1::", True), ("2002:808:808::", False),
    ],
)  # fmt: skip
def test_private_addresses_are_told_from_others(address: str, private: bool) -> None:
    assert rdata.is_private(ipaddress.ip_address(address).packed) == private


@pytest.mark.parametrize(
    ("qtype", "good", "bad"),
    [("A", "192.0.2.1", "10.0.0.1"), ("AAAA", "2001:db8::1", "fd00::1"),
     ("HTTPS", '1 . ipv4hint="192.0.2.1"', '2 . ipv4hint="192.168.0.1"')],
)  # fmt: skip
def test_records_with_a_private_address_are_left_out_on_demand(qtype: str, good: str, bad: str) -> None:
    for texts, count in (((good, bad), 1), ((bad,), 0), ((good,), 1)):
        wire = add(answer("a.test", qtype), "answer", *(f"a.test {qtype} {text}" for text in texts)).to_wire()
        question = bytes(wire[12 : 12 + 8 + 4])
        found = response.parse(wire, question, Strip(private=True))
        assert found.counts[0] == count
        assert [a for lead in found.leads for a in lead.addresses if rdata.is_private(a)] == []
        assert response.parse(wire, question).counts[0] == len(texts)
        assert found.lifetime == (300 if count else response.UNPROVEN_TTL)


def test_an_answer_of_private_addresses_alone_is_empty_and_no_referral() -> None:
    made = add(answer("a.test", "A", "10.0.0.1"), "authority", "test NS ns.test.")
    wire = add(made, "additional", "ns.test A 192.0.2.53").to_wire()
    found = response.parse(wire, question_of(wire), Strip(private=True))
    assert (found.referral, found.counts, found.extra_leads) == (False, (0, 0, 0), ())
    made = add(answer("a.b.test", "A"), "authority", "b.test NS ns.b.test.")
    wire = add(made, "additional", "ns.b.test A 10.0.0.1").to_wire()
    assert response.parse(wire, question_of(wire), Strip(private=True)).referral
