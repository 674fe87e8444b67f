"""Rows 20 to 42 of docs/bypasses.md: what a question or an answer may hide.

Where a query is crooked, an upstream may refuse it too. Then the plain form shows that the name was to be had.
"""

import socket
import struct

import dns.message
import pytest

from support import bypasses
from support.bypasses import (
    GATEWAY,
    GATEWAY4,
    LISTED4,
    LISTED6,
    Gateways,
    ask,
    asks,
    blocked,
    fails,
    raw,
    reaches,
    refused,
    resolves,
    server_of,
    towards,
    wire,
    works,
)
from support.worker import framed, read
from tools.rig import LAN6, OTHER6, Rig

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", ["one.test", "c1.test", "C1.TeSt", "d1.test"])
@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_20_aliases(gateways: Gateways, name: str, qtype: str) -> None:
    gateways.closes(resolves(GATEWAY, name, qtype))
    gateways.logs("dns", qname=name.lower(), qtype=qtype, rule="alipay.example")


@pytest.mark.parametrize("qtype", ["DNAME", "MX", "SRV", "NS", "NAPTR", "SVCB", "HTTPS"])
def test_21_records_that_lead_to_a_blocked_name(gateways: Gateways, qtype: str) -> None:
    gateways.closes(resolves(GATEWAY, f"{qtype.lower()}.test", qtype))
    gateways.logs("dns", qname=f"{qtype.lower()}.test", qtype=qtype, rule="alipay.example")


@pytest.mark.parametrize(("name", "qtype"), [("hint4.test", "HTTPS"), ("hint6.test", "SVCB"), ("alias.test", "HTTPS")])
def test_22_service_records_with_hints_and_aliases(gateways: Gateways, name: str, qtype: str) -> None:
    gateways.closes(resolves(GATEWAY, name, qtype))
    gateways.logs("dns", qname=name, qtype=qtype)
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "plain.test", "HTTPS").answers
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "www.alipay.example", qtype).rcode == "NXDOMAIN"


def test_23_encrypted_client_hello(gateways: Gateways) -> None:
    """The answer stays, without its keys: nothing is refused, and the log has no attempt."""

    def way(rig: Rig) -> list[bool]:
        tried = []
        for server in GATEWAY:
            (answer,) = rig.dig("client", f"@{server_of(rig, towards(server))}", "ech.test", "HTTPS").answers
            assert 'alpn="h2"' in answer
            tried.append("ech=" in answer or "key5=" in answer)
        return tried

    gateways.agent.write_config(dns={"ech": "strip"})
    gateways.agent.cli("reload")
    try:
        gateways.closes(way)
    finally:
        gateways.agent.write_config(dns={"ech": "keep"})
        gateways.agent.cli("reload")
    assert all(way(gateways.with_)), "and only on demand"


def test_25_ipv6_alone(gateways: Gateways) -> None:
    """IPv4 is what the row is not about: the same name and address stay closed there too."""
    gateways.closes(resolves(OTHER6, "six.alipay.example", "AAAA", "-6"))
    gateways.closes(reaches(LISTED6))
    gateways.logs("drop", dst=LISTED6, client=f"{LAN6}:10")
    gateways.logs("dns", qname="six.alipay.example", qtype="AAAA", client=f"{LAN6}:10")
    gateways.closes(reaches(LISTED4))


@pytest.mark.parametrize("name", ["mapped.test", "nat64.test", "to4.test"])
def test_26_an_ipv4_address_inside_an_ipv6_answer(gateways: Gateways, name: str) -> None:
    gateways.closes(resolves(GATEWAY, name, "AAAA"))
    gateways.logs("dns", qname=name, rule=f"{LISTED4}/29")


@pytest.mark.parametrize("address", ["64:ff9b::203.0.113.200", "2002:cb00:71c8::1"])
@pytest.mark.parametrize("udp", [False, True])
def test_26_packets_to_an_ipv4_address_inside_an_ipv6_one(gateways: Gateways, address: str, udp: bool) -> None:
    gateways.closes(reaches(address, udp=udp))
    gateways.logs("drop", app="example", rule=f"{LISTED4}/29", client=f"{LAN6}:10", proto="udp" if udp else "tcp")
    assert gateways.with_.reach("client", address.replace("113.200", "113.208").replace("71c8", "71d0")) == "open"


def test_27_internationalised_names(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY, "www.xn--bcher-kva.example"))
    gateways.logs("dns", qname="www.xn--bcher-kva.example", line=2)
    assert all(resolves(GATEWAY, "www.xn--bchr-kva.example")(gateways.with_)), "one that looks alike is another name"


def test_28_letter_case(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY, "cAsE.AlIpAy.eXaMpLe"))
    answer = gateways.with_.dig("client", f"@{GATEWAY4}", "cAsE.AlIpAy.eXaMpLe")
    assert "cAsE.AlIpAy.eXaMpLe" in answer.text, "the question keeps its letters"
    gateways.logs("dns", qname="case.alipay.example", app="example")


def test_29_dots_and_odd_octets_inside_a_label(gateways: Gateways) -> None:
    one_label, odd = b"\x0ealipay.example\0", b"\7a\0b\x1b\nc.\6alipay\7example\0"
    works(asks(raw(odd)), gateways.without)
    assert ask(gateways.with_, raw(one_label))[3] & 15 == 0, "one label is not the blocked name"
    fails(asks(raw(odd)), gateways.with_)
    assert blocked(gateways.with_, raw(odd))
    gateways.logs("dns", qname="a\\000b\\027\\010c\\..alipay.example")
    raw_log = (gateways.agent.root / "events.jsonl").read_bytes()
    assert not set(raw_log) & (set(range(32)) - {10})


def test_30_limits_of_names(gateways: Gateways) -> None:
    listed = wire("alipay.example")
    gateways.closes(resolves(GATEWAY, "dot.alipay.example."))
    gateways.logs("dns", qname="dot.alipay.example")
    long = b"".join(b"\x3f" + b"a" * 63 for _ in range(3))
    fits = long + bytes([255 - len(long) - len(listed) - 1])
    fits += b"b" * fits[-1] + listed
    assert len(fits) == 255
    gateways.closes(asks(raw(fits)))
    assert blocked(gateways.with_, raw(fits))
    for name in (long + b"\x3f" + b"a" * 63 + listed, b"\x40" + b"a" * 64 + listed, b"\x80" + listed):
        for server in GATEWAY:
            assert ask(gateways.with_, raw(name), server)[3:4] in (b"\x01", b"\x81"), "FORMERR"


def test_31_every_type(gateways: Gateways) -> None:
    types = ["A", "AAAA", "ANY", "TXT", "NULL", "SRV", "NAPTR", "MX", "CNAME", "HTTPS", "SVCB", "PTR", "SOA", "NS", "TYPE65399"]
    for qtype in types:
        assert gateways.with_.dig("client", f"@{GATEWAY4}", "types.alipay.example", qtype).rcode == "NXDOMAIN", qtype
    gateways.closes(resolves(GATEWAY, "types.alipay.example", "ANY"))
    for number in (*range(1, 41), 46, 48, 50, 64, 65, 99, 256, 257, 32768, 65280):
        assert blocked(gateways.with_, raw(wire("types.alipay.example"), number)), number
    gateways.logs("dns", qname="types.alipay.example", qtype="TYPE65399")


# ── crooked queries ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_32_more_than_one_question(gateways: Gateways) -> None:
    free, listed = wire("free.test"), wire("two.alipay.example")
    gateways.closes(asks(raw(listed)))
    gateways.logs("dns", qname="two.alipay.example")
    for first, second in ((free, listed), (listed, free)):
        packet = raw(first, head=b"\x01\0\0\2\0\0\0\0\0\0", tail=second + b"\0\1\0\1")
        for tcp in (False, True):
            fails(asks(packet, tcp=tcp), gateways.with_)
            assert refused(gateways.with_, packet, (1,), tcp=tcp)
    assert ask(gateways.with_, b"\0\1\x01\0" + bytes(8))[3] & 15 == 1, "and without any"


def test_33_pointers_in_the_question(gateways: Gateways) -> None:
    listed = wire("pointed.alipay.example")
    gateways.closes(asks(raw(listed)))
    gateways.logs("dns", qname="pointed.alipay.example")
    for name in (b"\xc0\x0c", b"\3www\xc0\x0c", b"\xc0\x20", b"\3www\xc0\x1e\0"):
        packet = raw(name, tail=listed)
        fails(asks(packet), gateways.with_)
        assert refused(gateways.with_, packet, (1,))


@pytest.mark.parametrize("words", ["+norec", "+cd", "+dnssec", "+adflag", "+zflag", "+nocookie +nsid", "+bufsize=512"])
def test_34_flags(gateways: Gateways, words: str) -> None:
    name = f"{words.split()[0][1:].replace('=', '')}.alipay.example"
    gateways.closes(resolves(GATEWAY, name, *words.split()))
    if words != "+zflag":
        assert gateways.with_.dig("client", f"@{GATEWAY4}", name, *words.split()).rcode == "NXDOMAIN"
        gateways.logs("dns", qname=name)


def test_34_other_classes_and_opcodes(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY, "class.alipay.example"))
    for class_ in ("CH", "HS"):
        fails(resolves(GATEWAY, "class.alipay.example", "-c", class_), gateways.with_)
    for opcode in (1, 2, 4, 5, 15):
        assert gateways.with_.dig("client", f"@{GATEWAY4}", "class.alipay.example", f"+opcode={opcode}").rcode == "NOTIMP"


def test_35_edns_that_hides_something(gateways: Gateways) -> None:
    listed = wire("edns.alipay.example")
    opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    head = b"\x01\0\0\1\0\0\0\0\0\1"
    gateways.closes(asks(raw(listed, head=head, tail=opt)))
    two = raw(listed, head=b"\x01\0\0\1\0\0\0\0\0\2", tail=opt + opt)
    named = raw(listed, head=head, tail=b"\1a\0" + opt[1:])
    past = raw(listed, head=head, tail=opt[:-1] + b"\x20")
    for packet in (two, named, past):
        assert refused(gateways.with_, packet, (1, 3))
    options = b"".join(struct.pack("!HH", 65000, 0) for _ in range(900))
    many = raw(listed, head=head, tail=opt[:-2] + len(options).to_bytes(2) + options)
    fails(asks(many), gateways.with_)
    assert blocked(gateways.with_, many)
    gateways.closes(resolves(GATEWAY, "ecs.alipay.example", "+subnet=192.0.2.0/24"))
    gateways.logs("dns", qname="ecs.alipay.example")


def test_36_octets_behind_the_message(gateways: Gateways) -> None:
    listed = wire("behind.alipay.example")
    gateways.closes(asks(raw(listed)))
    gateways.logs("dns", qname="behind.alipay.example")
    for tail in (b"\0", listed, bytes(3000)):
        fails(asks(raw(listed, tail=tail)), gateways.with_)
        assert refused(gateways.with_, raw(listed, tail=tail), (1, 3))
    assert refused(gateways.with_, raw(listed, head=b"\x01\0\0\1\0\0\0\0\0\1"), (1, 3))


def test_37_tcp_in_pieces_and_together(gateways: Gateways) -> None:
    packet, free = framed(raw(wire("pieces.alipay.example"))), framed(raw(wire("free.test")))

    def rcodes(rig: Rig, server: str) -> list[int]:
        """Of a query octet by octet, and of three in one segment."""
        server = server_of(rig, towards(server))
        with rig.socket("client", socket.SOCK_STREAM, server) as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((server, 53))
            for octet in packet:
                sock.send(bytes([octet]))
            first = read(sock)[3] & 15
            sock.sendall(packet + free + packet)
            return [first, *sorted(read(sock)[3] & 15 for _ in range(3))]

    def alone(rig: Rig) -> list[bool]:
        return [rcodes(rig, server)[0] == 0 for server in GATEWAY]

    gateways.closes(alone)
    for server in GATEWAY:
        assert rcodes(gateways.without, server) == [0, 0, 0, 0]
        assert rcodes(gateways.with_, server) == [3, 0, 3, 3]
    gateways.logs("dns", qname="pieces.alipay.example")


# ── answers and time ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "qtype", "rule"),
    [("203-0-113-201.wild.test", "A", f"{LISTED4}/29"), ("six.wild.test", "AAAA", "2001:db8:99::/48")],
)
def test_38_a_name_of_somebody_else_for_a_listed_address(gateways: Gateways, name: str, qtype: str, rule: str) -> None:
    gateways.closes(resolves(GATEWAY, name, qtype))
    gateways.logs("dns", qname=name, rule=rule)


@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_41_an_answer_that_is_in_the_cache_when_the_list_changes(gateways: Gateways, qtype: str) -> None:
    assert all(resolves(GATEWAY, "steady.test", qtype)(gateways.with_)), "it is in the cache"
    gateways.agent.cli("block", "steady.test")
    try:
        gateways.closes(resolves(GATEWAY * 10, "steady.test", qtype))
        gateways.logs("dns", qname="steady.test", qtype=qtype, app="local")
    finally:
        gateways.agent.cli("forget", "steady.test")
    assert all(resolves(GATEWAY, "steady.test", qtype)(gateways.with_))


def test_42_what_clients_remember(gateways: Gateways) -> None:
    """A day, says the upstream; an hour or, of a blocked name, ten seconds, say we."""

    def longer(name: str, seconds: int) -> bypasses.Way:
        def way(rig: Rig) -> list[bool]:
            query = dns.message.make_query(name, "A").to_wire()
            replies = [dns.message.from_wire(ask(rig, query, server)) for server in GATEWAY]
            return [min(rrset.ttl for rrset in (*reply.answer, *reply.authority)) > seconds for reply in replies]

        return way

    gateways.closes(longer("long.test", 3600))
    gateways.closes(longer("long.alipay.example", 10))
    gateways.logs("dns", qname="long.alipay.example")
