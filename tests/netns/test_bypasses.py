"""The ways round the filter, one test each (the rows are those of docs/bypasses.md).

Each way is first gone through a gateway without the agent, where it must work, then through one with it, where it must not;
something allowed still works; and the log says who tried, what, and why it was refused. The catalogue's own networks belong to
test hosts in namespaces that have no way out.
"""

import contextlib
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import pytest

from support.agent import Agent, running, until
from support.worker import framed, read
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, UPSTREAM4, WEB4, WEB6, Rig

pytestmark = pytest.mark.root

CATALOGUE = str(Path(__file__).parent.parent.parent / "blocklists")
GATEWAY4, GATEWAY6 = f"{LAN4}.1", f"{LAN6}:1"
LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
FREE4, FREE6 = "203.0.113.21", "2001:db8:3::21"
UNKNOWN4, UNKNOWN6 = "203.0.113.90", "2001:db8:3::90"  # no name leads there
RESOLVER4, RESOLVER6 = "9.9.9.9", "2620:fe::fe"  # public ones that the catalogue lists
APPS = {
    "example": {"payment": ["alipay.example", "bücher.example", f"{LISTED4}/29", "2001:db8:99::/48"], "core": ["late.test"]}
}


def rr(name: str, rtype: str, rdata: str) -> str:
    """A record of any type for dnsmasq."""
    wire = dns.rdata.from_text("IN", rtype, rdata).to_wire()
    assert wire is not None
    return f"dns-rr={name},{int(dns.rdatatype.from_text(rtype))},{wire.hex()}"


ECH = 'ech="AAb+DQACq7s="'
RECORDS = (
    f"host-record=free.test,{FREE4},{FREE6}", "txt-record=free.test,hello",
    "host-record=edge.alipay.example,203.0.113.20", "cname=one.test,edge.alipay.example",
    *(f"cname=c{n}.test,c{n + 1}.test" for n in range(1, 7)), "cname=c7.test,edge.alipay.example",
    "cname=d1.test,d2.alipay.example", "cname=d2.alipay.example,free.test",
    rr("dname.test", "DNAME", "alipay.example."), rr("mx.test", "MX", "10 mx.alipay.example."),
    rr("srv.test", "SRV", "1 1 443 srv.alipay.example."), rr("ns.test", "NS", "ns.alipay.example."),
    rr("naptr.test", "NAPTR", '1 1 "s" "x" "" n.alipay.example.'), rr("svcb.test", "SVCB", "1 svc.alipay.example."),
    rr("https.test", "HTTPS", "1 web.alipay.example."), rr("alias.test", "HTTPS", "0 web.alipay.example."),
    rr("hint4.test", "HTTPS", f'1 . alpn="h3" ipv4hint="{LISTED4}"'), rr("hint6.test", "SVCB", f'1 . ipv6hint="{LISTED6}"'),
    rr("plain.test", "HTTPS", '1 . alpn="h2"'), rr("ech.test", "HTTPS", f'1 . alpn="h2" {ECH}'),
    "host-record=203-0-113-201.wild.test,203.0.113.201", "host-record=mapped.test,::ffff:203.0.113.201",
    "host-record=nat64.test,64:ff9b::203.0.113.201", "host-record=to4.test,2002:cb00:71c9::1",
    "host-record=rebind.test,192.168.1.1,fd00::1", "host-record=meta.test,169.254.169.254",
    "host-record=late.test,203.0.113.22", "host-record=steady.test,203.0.113.24",
    "host-record=shared.test,203.0.113.31", "host-record=shared.alipay.example,203.0.113.31",
)  # fmt: skip
NETWORKS = (
    "2001:db8:99::/48", "64:ff9b::/96", "2002:cb00:7100::/40", "119.29.29.0/24", "203.107.1.0/24", "2401:b180:7001::/48",
    "59.82.113.0/24", "8.8.8.8/32", "9.9.9.9/32", "2620:fe::/48", "180.153.202.0/24",
)  # fmt: skip


class Gateways(NamedTuple):
    """The same network twice: behind a gateway that only forwards, and behind one with the agent."""

    without: Rig
    with_: Rig
    agent: Agent

    def closes(self, way: Callable[[Rig], bool]) -> None:
        """The way works without the agent and does not with it."""
        assert way(self.without), "without the agent it works"
        assert not way(self.with_), "with the agent it does not"

    def logs(self, event: str, **members: object) -> None:
        until(
            lambda: any(all(e.get(key) == value for key, value in members.items()) for e in self.agent.events(event)),
            f"the log has {event} {members}",
        )


@contextlib.contextmanager
def network() -> Iterator[Rig]:
    with Rig() as made:
        made.own(*NETWORKS)
        for address in (RESOLVER4, RESOLVER6):  # dnsmasq answers on TCP and IPv6 for addresses of interfaces only
            made.run("internet", "ip", "address", "add", address, "dev", "lo")
        made.serve_dns(*RECORDS)
        made.serve_dns(*RECORDS, port=9953)
        made.serve_web()
        yield made


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    root = tmp_path_factory.mktemp("bypasses")
    (root / "state").mkdir()
    (root / "state/learnt.jsonl").write_text(f'{{"version":1,"saved":{time.time()}}}\n')
    sections: dict[str, dict[str, Any]] = {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [UPSTREAM4], "workers": 1},
        "policy": {"apps": ["example", "alipay", "wechat-pay", "qq"], "functions": ["payment", "telemetry"]},
        "lists": {"apps": [CATALOGUE, str(root / "apps")]},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8400},
    }
    with (
        network() as without,
        network() as with_,
        running(root, prefix=with_.prefix("gateway"), apps=APPS, **sections) as agent,
    ):
        agent.port = 53
        yield Gateways(without, with_, agent)


@pytest.fixture(autouse=True)
def control(gateways: Gateways) -> Iterator[None]:
    """What is allowed works before and after every way that is tried."""
    yield
    for server in (GATEWAY4, GATEWAY6):
        assert gateways.with_.dig("client", f"@{server}", "free.test").answers == (f"A {FREE4}",)
    for address in (FREE4, FREE6):
        assert gateways.with_.reach("client", address) == "open"


def resolves(server: str, name: str, *words: str) -> Callable[[Rig], bool]:
    """Does a client get an answer with content? The gateway without the agent is no resolver: there it asks the upstream."""

    def way(rig: Rig) -> bool:
        own = rig.run("gateway", "ss", "-Hlun", "sport = :53", check=False).stdout
        to = UPSTREAM4 if server in (GATEWAY4, GATEWAY6) and not own else server
        answer = rig.dig("client", f"@{to}", name, *words)
        return answer.rcode == "NOERROR" and bool(answer.answers)

    return way


def reaches(address: str, port: int = 443, *, udp: bool = False) -> Callable[[Rig], bool]:
    return lambda rig: rig.reach("client", address, port, udp=udp, seconds=1.0) == "open"


def exchanges(address: str, content: bytes, port: int = 80) -> Callable[[Rig], bool]:
    """Does what a client sends over TCP come back (the servers echo)?"""

    def way(rig: Rig) -> bool:
        with rig.socket("client", socket.SOCK_STREAM, address) as sock:
            sock.settimeout(2)
            try:
                sock.connect((address, port))
                sock.sendall(content)
                return sock.recv(4096) == content
            except OSError:
                return False

    return way


def ask(rig: Rig, packet: bytes, server: str = GATEWAY4, *, tcp: bool = False) -> bytes:
    """The reply to a raw packet; nothing when none comes."""
    with rig.socket("client", socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM, server) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect((server, 53))
            sock.sendall(framed(packet) if tcp else packet)
            return read(sock) if tcp else sock.recv(4096)
        except OSError:
            return b""


# ── other resolvers and encrypted DNS ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("server", [OTHER4, OTHER6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_01_a_hard_coded_resolver(gateways: Gateways, server: str, transport: str) -> None:
    name = f"{transport[1:]}-{'six' if ':' in server else 'four'}.alipay.example"
    gateways.closes(resolves(server, name, transport))
    gateways.logs("dns", qname=name, app="example", list="example/payment.list", line=1)


@pytest.mark.parametrize(("server", "port"), [(RESOLVER4, 9953), (RESOLVER6, 9953)])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_02_a_public_resolver_on_another_port(gateways: Gateways, server: str, port: int, transport: str) -> None:
    gateways.closes(resolves(server, "www.alipay.example", "-p", str(port), transport))
    gateways.logs("drop", dst=server, dport=port, app="bypass", function="doh")


def test_02_dnscrypt_to_a_public_resolver(gateways: Gateways) -> None:
    gateways.closes(reaches(RESOLVER4, 443, udp=True))
    gateways.logs("drop", dst=RESOLVER4, dport=443, proto="udp", app="bypass")


def test_03_tcp_alone(gateways: Gateways) -> None:
    for server in (GATEWAY4, GATEWAY6):
        gateways.closes(resolves(server, "tcp.alipay.example", "+tcp"))
    gateways.logs("dns", qname="tcp.alipay.example")


@pytest.mark.parametrize("address", [WEB4, WEB6])
def test_04_dns_over_tls(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address, 853))
    began = time.monotonic()
    assert gateways.with_.reach("client", address, 853) == "refused"
    assert time.monotonic() < began + 1, "at once, so that the client falls back"
    gateways.logs("drop", dst=address, dport=853, proto="tcp", app="bypass", function="dot")


@pytest.mark.parametrize("address", [WEB4, WEB6])
@pytest.mark.parametrize("port", [853, 784, 8853])
def test_05_dns_over_quic(gateways: Gateways, address: str, port: int) -> None:
    gateways.closes(reaches(address, port, udp=True))
    gateways.logs("drop", dst=address, dport=port, proto="udp", app="bypass", function="doq")


def test_06_dns_over_https_by_name(gateways: Gateways) -> None:
    for name in ("cloudflare-dns.com", "dns.google", "dns.quad9.net"):
        gateways.closes(resolves(GATEWAY4, name))
    gateways.logs("dns", qname="cloudflare-dns.com", app="bypass", function="doh")


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6])
def test_06_dns_over_https_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address, 443))
    gateways.logs("drop", dst=address, dport=443, proto="tcp", app="bypass", function="doh", names=[], direct=True)


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6])
def test_07_dns_over_http3(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address, 443, udp=True))
    gateways.logs("drop", dst=address, dport=443, proto="udp", app="bypass", function="doh")


@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_08_firefox_turns_to_its_own_resolver(gateways: Gateways, qtype: str) -> None:
    for name in ("use-application-dns.net", "USE-application-DNS.net"):
        gateways.closes(resolves(GATEWAY4, name, qtype))
        for other in ("A", "AAAA", "HTTPS", "TXT", "ANY"):
            assert gateways.with_.dig("client", f"@{GATEWAY4}", name, other).rcode == "NXDOMAIN"
    gateways.logs("dns", qname="use-application-dns.net", app="bypass", function="canary", action="nxdomain")


def test_09_private_relay(gateways: Gateways) -> None:
    for name in ("mask.icloud.com", "mask-h2.icloud.com"):
        gateways.closes(resolves(GATEWAY4, name))
        began = time.monotonic()
        assert gateways.with_.dig("client", f"@{GATEWAY4}", name, "HTTPS").rcode == "NXDOMAIN", "a negative answer, not silence"
        assert time.monotonic() < began + 1
    gateways.logs("dns", qname="mask.icloud.com", app="bypass", function="relay")


def test_10_discovery_of_designated_resolvers(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY4, "_dns.resolver.arpa", "A"))
    for name, qtype in (("_dns.resolver.arpa", "SVCB"), ("resolver.arpa", "A"), ("x.y.resolver.arpa", "HTTPS")):
        answer = gateways.with_.dig("client", f"@{GATEWAY4}", name, qtype)
        assert (answer.rcode, answer.answers) == ("NOERROR", ())
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "xresolver.arpa").answers, "a name that only ends alike"


def test_11_a_known_public_resolver_is_set_on_the_client(gateways: Gateways) -> None:
    gateways.closes(resolves("8.8.8.8", "known.alipay.example"))
    gateways.logs("dns", qname="known.alipay.example", client=f"{LAN4}.10")
    gateways.closes(reaches("8.8.8.8", 853))


def test_12_a_second_resolver_while_ours_is_down(tmp_path: Path) -> None:
    sections = {
        "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8401},
    }
    with network() as rig:
        assert resolves(OTHER4, "second.alipay.example")(rig)
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **sections) as agent:
            children = agent.children()
            for pid in children:
                os.kill(pid, signal.SIGSTOP)
            try:
                for server in (GATEWAY4, OTHER4, "8.8.8.8"):
                    assert rig.dig("client", f"@{server}", "+time=1", "second.alipay.example").rcode == ""
                assert rig.reach("client", LISTED4) == "refused"
                assert rig.reach("client", FREE4) == "open"
            finally:
                for pid in children:
                    os.kill(pid, signal.SIGCONT)
            assert rig.dig("client", f"@{OTHER4}", "second.alipay.example").rcode == "NXDOMAIN"


# ── in-app resolvers and fixed addresses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["119.29.29.98", "119.29.29.99"])
def test_13_tencent_httpdns_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(exchanges(address, b"GET /d?dn=7765 HTTP/1.1\r\n\r\n"))
    gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")


@pytest.mark.parametrize("address", [UNKNOWN4, UNKNOWN6])
@pytest.mark.parametrize("path", [b"/d?dn=7765&id=1&alg=des", b"/conf?id=1&alg=aes"])
def test_13_tencent_httpdns_at_an_address_nobody_knows(gateways: Gateways, address: str, path: bytes) -> None:
    gateways.closes(exchanges(address, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"))
    gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")
    for other in (b"/", b"/d?dm=1", b"/download?dn=1", b"/config?id=1"):
        assert exchanges(address, b"GET " + other + b" HTTP/1.1\r\nHost: a\r\n\r\n")(gateways.with_)


@pytest.mark.parametrize("address", ["203.107.1.1", "2401:b180:7001::31d"])
def test_14_alibaba_httpdns_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(exchanges(address, b"GET /139450/ss HTTP/1.1\r\n\r\n"))
    gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")


@pytest.mark.parametrize("path", [b"/v2/d?id=1&m=0", b"/139450/d?host=a", b"/139450/sign_d?host=a", b"/139450/resolve?host=a"])
def test_14_alibaba_httpdns_at_an_address_nobody_knows(gateways: Gateways, path: bytes) -> None:
    gateways.closes(exchanges(UNKNOWN4, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"))
    gateways.logs("drop", dst=UNKNOWN4, dport=80, app="bypass", function="httpdns")
    for other in (b"/139450/resources/a.js", b"/13945/d?host=a", b"/abcdef/d?host=a", b"/v2/data?id=1"):
        assert exchanges(UNKNOWN4, b"GET " + other + b" HTTP/1.1\r\nHost: a\r\n\r\n")(gateways.with_)


def test_15_wechat_newdns(gateways: Gateways) -> None:
    for name in ("dns.weixin.qq.com", "dns.weixin.qq.com.cn", "aedns.weixin.qq.com"):
        gateways.closes(resolves(GATEWAY4, name))
    gateways.logs("dns", qname="dns.weixin.qq.com", app="wechat-pay", function="httpdns")
    gateways.closes(reaches("180.153.202.85", 80))
    gateways.logs("drop", dst="180.153.202.85", app="wechat-pay", function="httpdns")


def test_16_alibaba_amdc_and_its_fallback_to_addresses(gateways: Gateways) -> None:
    for name in ("amdc.alipay.com", "amdc.m.taobao.com"):
        gateways.closes(resolves(GATEWAY4, name))
    for address in ("59.82.113.10", "59.82.113.219"):
        gateways.closes(reaches(address, 80))
        gateways.logs("drop", dst=address, app="bypass", function="httpdns")


@pytest.mark.parametrize("address", [LISTED4, LISTED6])
def test_17_a_hard_coded_address(gateways: Gateways, address: str) -> None:
    for udp in (False, True):
        gateways.closes(reaches(address, 8080, udp=udp))
        gateways.logs("drop", dst=address, dport=8080, proto="udp" if udp else "tcp", names=[], direct=True, app="example")


def test_18_an_address_that_others_share(gateways: Gateways) -> None:
    """The way that stays open on purpose: the neighbour works, and the administrator is told of both."""
    with_ = gateways.with_
    assert with_.dig("client", f"@{GATEWAY4}", "shared.test").answers == ("A 203.0.113.31",)
    time.sleep(0.3)
    assert with_.dig("client", f"@{GATEWAY4}", "shared.alipay.example").rcode == "NXDOMAIN"
    until(lambda: gateways.agent.told("why", "203.0.113.31", status=1).get("spared"), "the conflict is told")
    assert with_.reach("client", "203.0.113.31") == "open"


# ── inside DNS ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["one.test", "c1.test", "C1.TeSt", "d1.test"])
def test_20_aliases(gateways: Gateways, name: str) -> None:
    for qtype in ("A", "AAAA") if name == "one.test" else ("A",):
        gateways.closes(lambda rig, qtype=qtype: bool(resolves(GATEWAY4, name, qtype)(rig)))  # type: ignore[misc]
    gateways.logs("dns", qname=name.lower(), rule="alipay.example")


@pytest.mark.parametrize("qtype", ["DNAME", "MX", "SRV", "NS", "NAPTR", "SVCB", "HTTPS"])
def test_21_records_that_lead_to_a_blocked_name(gateways: Gateways, qtype: str) -> None:
    gateways.closes(resolves(GATEWAY4, f"{qtype.lower()}.test", qtype))
    gateways.logs("dns", qname=f"{qtype.lower()}.test", qtype=qtype, rule="alipay.example")


@pytest.mark.parametrize(("name", "qtype"), [("hint4.test", "HTTPS"), ("hint6.test", "SVCB"), ("alias.test", "HTTPS")])
def test_22_service_records_with_hints_and_aliases(gateways: Gateways, name: str, qtype: str) -> None:
    gateways.closes(resolves(GATEWAY4, name, qtype))
    gateways.logs("dns", qname=name, qtype=qtype)
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "plain.test", "HTTPS").answers
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "www.alipay.example", qtype).rcode == "NXDOMAIN"


def test_23_encrypted_client_hello(gateways: Gateways) -> None:
    def way(rig: Rig) -> bool:
        server = UPSTREAM4 if rig is gateways.without else GATEWAY4
        (answer,) = rig.dig("client", f"@{server}", "ech.test", "HTTPS").answers
        assert 'alpn="h2"' in answer
        return "ech=" in answer or "key5=" in answer

    gateways.agent.write_config(dns={"ech": "strip"})
    gateways.agent.cli("reload")
    try:
        gateways.closes(way)
    finally:
        gateways.agent.write_config(dns={"ech": "keep"})
        gateways.agent.cli("reload")
    assert way(gateways.with_), "and only on demand"


def test_25_ipv6_alone(gateways: Gateways) -> None:
    gateways.closes(resolves(OTHER6, "six.alipay.example", "AAAA", "-6"))
    gateways.closes(reaches(LISTED6))
    gateways.logs("drop", dst=LISTED6, client=f"{LAN6}:10")
    gateways.logs("dns", qname="six.alipay.example", qtype="AAAA", client=f"{LAN6}:10")


@pytest.mark.parametrize("name", ["mapped.test", "nat64.test", "to4.test"])
def test_26_an_ipv4_address_inside_an_ipv6_answer(gateways: Gateways, name: str) -> None:
    gateways.closes(resolves(GATEWAY4, name, "AAAA"))
    gateways.logs("dns", qname=name, rule=f"{LISTED4}/29")


@pytest.mark.parametrize("address", ["64:ff9b::203.0.113.200", "2002:cb00:71c8::1"])
@pytest.mark.parametrize("udp", [False, True])
def test_26_packets_to_an_ipv4_address_inside_an_ipv6_one(gateways: Gateways, address: str, udp: bool) -> None:
    gateways.closes(reaches(address, udp=udp))
    gateways.logs("drop", app="example", rule=f"{LISTED4}/29", client=f"{LAN6}:10", proto="udp" if udp else "tcp")
    assert gateways.with_.reach("client", address.replace("113.200", "113.208").replace("71c8", "71d0")) == "open"


def test_27_internationalised_names(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY4, "www.xn--bcher-kva.example"))
    gateways.logs("dns", qname="www.xn--bcher-kva.example", line=2)
    assert resolves(GATEWAY4, "www.xn--bchr-kva.example")(gateways.with_), "one that looks alike is another name"


def test_28_letter_case(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY4, "wWw.AlIpAy.eXaMpLe"))
    answer = gateways.with_.dig("client", f"@{GATEWAY4}", "wWw.AlIpAy.eXaMpLe")
    assert "wWw.AlIpAy.eXaMpLe" in answer.text, "the question keeps its letters"


def raw(name: bytes, qtype: int = 1, head: bytes = b"\x01\x00\0\1\0\0\0\0\0\0", tail: bytes = b"") -> bytes:
    return random.randbytes(2) + head + name + qtype.to_bytes(2) + b"\0\1" + tail


WIRE = b"\3www\6alipay\7example\0"


def blocked(rig: Rig, packet: bytes, *, tcp: bool = False) -> bool:
    reply = ask(rig, packet, tcp=tcp)
    return bool(reply) and reply[3] & 15 == 3


def test_29_dots_and_odd_octets_inside_a_label(gateways: Gateways) -> None:
    odd = (b"\x0ealipay.example\0", b"\7a\0b\x1b\nc.\6alipay\7example\0")
    assert ask(gateways.with_, raw(odd[0]))[3] & 15 == 0, "one label is not the blocked name"
    assert blocked(gateways.with_, raw(odd[1]))
    gateways.logs("dns", qname="a\\000b\\027\\010c\\..alipay.example")
    raw_log = (gateways.agent.root / "events.jsonl").read_bytes()
    assert not set(raw_log) & (set(range(32)) - {10})


def test_30_limits_of_names(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY4, "www.alipay.example."))
    long = b"".join(b"\x3f" + b"a" * 63 for _ in range(3))
    fits = long + bytes([255 - len(long) - len(WIRE[4:]) - 1])
    fits += b"b" * fits[-1] + WIRE[4:]
    assert len(fits) == 255
    assert blocked(gateways.with_, raw(fits))
    for name in (long + b"\x3f" + b"a" * 63 + WIRE[4:], b"\x40" + b"a" * 64 + WIRE[4:], b"\x80" + WIRE[4:]):
        assert ask(gateways.with_, raw(name))[3:4] in (b"\x01", b"\x81"), "FORMERR"


def test_31_every_type(gateways: Gateways) -> None:
    types = ["A", "AAAA", "ANY", "TXT", "NULL", "SRV", "NAPTR", "MX", "CNAME", "HTTPS", "SVCB", "PTR", "SOA", "NS", "TYPE65399"]
    for qtype in types:
        assert gateways.with_.dig("client", f"@{GATEWAY4}", "types.alipay.example", qtype).rcode == "NXDOMAIN", qtype
    gateways.closes(resolves(GATEWAY4, "types.alipay.example", "ANY"))
    for number in (*range(1, 41), 46, 48, 50, 64, 65, 99, 256, 257, 32768, 65280):
        assert blocked(gateways.with_, raw(WIRE, number)), number
    gateways.logs("dns", qname="types.alipay.example", qtype="TYPE65399")


def test_32_more_than_one_question(gateways: Gateways) -> None:
    free = b"\4free\4test\0"
    for names_ in ((free, WIRE), (WIRE, free)):
        packet = raw(names_[0], head=b"\x01\0\0\2\0\0\0\0\0\0", tail=names_[1] + b"\0\1\0\1")
        for tcp in (False, True):
            reply = ask(gateways.with_, packet, tcp=tcp)
            assert reply[3] & 15 == 1
            assert b"\xcb\0\x71" not in reply
    assert ask(gateways.with_, b"\0\1\x01\0" + bytes(8))[3] & 15 == 1


def test_33_pointers_in_the_question(gateways: Gateways) -> None:
    for name in (b"\xc0\x0c", b"\3www\xc0\x0c", b"\xc0\x20", b"\3www\xc0\x1e\0"):
        reply = ask(gateways.with_, raw(name, tail=WIRE))
        assert not reply or reply[3] & 15 == 1


@pytest.mark.parametrize(
    "words", [("+norec",), ("+cd",), ("+dnssec",), ("+adflag",), ("+zflag",), ("+nocookie", "+nsid"), ("+bufsize=512",)]
)
def test_34_flags(gateways: Gateways, words: tuple[str, ...]) -> None:
    assert not resolves(GATEWAY4, "flags.alipay.example", *words)(gateways.with_)
    if words != ("+zflag",):
        assert gateways.with_.dig("client", f"@{GATEWAY4}", "flags.alipay.example", *words).rcode == "NXDOMAIN"


def test_34_other_classes_and_opcodes(gateways: Gateways) -> None:
    for class_ in ("CH", "HS"):
        assert not resolves(GATEWAY4, "www.alipay.example", "-c", class_)(gateways.with_)
    for opcode in (1, 2, 4, 5, 15):
        assert gateways.with_.dig("client", f"@{GATEWAY4}", "www.alipay.example", f"+opcode={opcode}").rcode == "NOTIMP"


def test_35_edns_that_hides_something(gateways: Gateways) -> None:
    opt = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
    head = b"\x01\0\0\1\0\0\0\0\0\1"
    two = raw(WIRE, head=b"\x01\0\0\1\0\0\0\0\0\2", tail=opt + opt)
    named = raw(WIRE, head=head, tail=b"\1a\0" + opt[1:])
    past = raw(WIRE, head=head, tail=opt[:-1] + b"\x20")
    for packet in (two, named, past):
        reply = ask(gateways.with_, packet)
        assert not reply or reply[3] & 15 in (1, 3)
    options = b"".join(struct.pack("!HH", 65000, 0) for _ in range(900))
    many = raw(WIRE, head=head, tail=opt[:-2] + len(options).to_bytes(2) + options)
    assert blocked(gateways.with_, many)
    assert not resolves(GATEWAY4, "ecs.alipay.example", "+subnet=192.0.2.0/24")(gateways.with_)


def test_36_octets_behind_the_message(gateways: Gateways) -> None:
    for tail in (b"\0", WIRE, bytes(3000)):
        reply = ask(gateways.with_, raw(WIRE, tail=tail))
        assert not reply or reply[3] & 15 in (1, 3)
    reply = ask(gateways.with_, raw(WIRE, head=b"\x01\0\0\1\0\0\0\0\0\1"))
    assert not reply or reply[3] & 15 in (1, 3)


def test_37_tcp_in_pieces_and_together(gateways: Gateways) -> None:
    packet = framed(raw(WIRE))
    with gateways.with_.socket("client", socket.SOCK_STREAM, GATEWAY4) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((GATEWAY4, 53))
        for octet in packet:
            sock.send(bytes([octet]))
        assert read(sock)[3] & 15 == 3
        sock.sendall(packet + framed(raw(b"\4free\4test\0")) + packet)
        assert sorted(read(sock)[3] & 15 for _ in range(3)) == [0, 3, 3]


def test_38_a_name_of_somebody_else_for_a_listed_address(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY4, "203-0-113-201.wild.test"))
    gateways.logs("dns", qname="203-0-113-201.wild.test", rule=f"{LISTED4}/29")


def test_41_an_answer_that_is_in_the_cache_when_the_list_changes(gateways: Gateways) -> None:
    assert resolves(GATEWAY4, "steady.test")(gateways.with_)
    gateways.agent.cli("block", "steady.test")
    try:
        for _ in range(20):
            assert gateways.with_.dig("client", f"@{GATEWAY4}", "steady.test").rcode == "NXDOMAIN"
        assert resolves(UPSTREAM4, "steady.test")(gateways.without)
    finally:
        gateways.agent.cli("forget", "steady.test")
    assert resolves(GATEWAY4, "steady.test")(gateways.with_)


def ttl(rig: Rig, name: str) -> int:
    query = dns.message.make_query(name, "A")
    reply = dns.message.from_wire(ask(rig, query.to_wire()))
    return min(rrset.ttl for rrset in (*reply.answer, *reply.authority))


def test_42_what_clients_remember(gateways: Gateways) -> None:
    assert ttl(gateways.with_, "www.alipay.example") <= 10
    assert ttl(gateways.with_, "free.test") <= 3600


# ── the packet path ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("before", ["agent", "other"])
def test_45_a_flow_that_was_open_before(gateways: Gateways, before: str) -> None:
    """Also beside a firewall of somebody else that accepts whatever is established."""
    accept = (
        "table inet other { chain forward { type filter hook forward priority filter; policy accept;"
        " ct state established accept; }; }"
    )
    address = "203.0.113.61" if before == "agent" else "203.0.113.62"
    with_ = gateways.with_
    with_.run("gateway", "nft", accept)
    try:
        with with_.socket("client", socket.SOCK_STREAM, address) as flow:
            flow.settimeout(5)
            flow.connect((address, 443))
            flow.sendall(b"before")
            assert flow.recv(64) == b"before"
            gateways.agent.cli("block", address)
            with pytest.raises(ConnectionResetError):
                for _ in range(50):
                    flow.sendall(b"after")
                    assert flow.recv(64)
        gateways.logs("drop", dst=address, app="local", function="block")
    finally:
        gateways.agent.cli("forget", address)
        with_.run("gateway", "nft", "delete table inet other")
    assert with_.reach("client", address) == "open"


def test_45_an_open_flow_of_dns_over_tls_when_that_is_closed(gateways: Gateways) -> None:
    """Its next packet may be the server's, which must not let the flow through for good."""
    agent = gateways.agent
    agent.write_config(policy={"bypass": ["doh"]})
    agent.cli("reload")
    with gateways.with_.socket("client", socket.SOCK_STREAM, UNKNOWN4) as flow:
        flow.settimeout(5)
        flow.connect((UNKNOWN4, 853))
        flow.sendall(b"before")
        assert flow.recv(64) == b"before"
        agent.write_config(policy={"bypass": ["dot", "doq", "doh", "httpdns", "canary", "relay"]})
        agent.cli("reload")
        with pytest.raises(ConnectionResetError):
            for _ in range(50):
                flow.sendall(b"after")
                assert flow.recv(64)


def test_47_the_first_packet_after_an_answer(gateways: Gateways) -> None:
    """Whoever asks for an unblocked name gets through at once, although a blocked one led to its address a moment before."""
    agent, with_ = gateways.agent, gateways.with_
    agent.cli("block", "early.test")
    try:
        for number in range(5):
            with_.dig("client", f"@{GATEWAY4}", f"n{number}.early.test")  # all lead to WEB4, and so does what follows
            answer = with_.dig("client", f"@{GATEWAY4}", f"n{number}.late-neighbour.test")
            assert answer.answers == (f"A {WEB4}",)
            assert with_.reach("client", WEB4) == "open"
    finally:
        agent.cli("forget", "early.test")


def test_48_somebody_flushes_the_ruleset(gateways: Gateways) -> None:
    for command in ("flush ruleset", "delete table inet embargo"):
        gateways.with_.run("gateway", "nft", command, check=False)
        assert not reaches(LISTED4)(gateways.with_)
        assert not resolves(OTHER4, "flushed.alipay.example")(gateways.with_)


def test_49_the_agent_is_killed(tmp_path: Path) -> None:
    sections = {
        "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8402},
    }
    with network() as rig:
        assert reaches(LISTED4)(rig)
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **sections) as agent:
            assert agent.process is not None
            os.kill(agent.process.pid, signal.SIGKILL)
            until(agent.ended, "it is dead")
            time.sleep(0.5)
            assert not reaches(LISTED4)(rig)
            assert not reaches(LISTED6)(rig)
            assert not resolves(OTHER4, "killed.alipay.example")(rig)
            assert reaches(FREE4)(rig)


def test_50_the_gateways_own_processes_and_its_containers(gateways: Gateways) -> None:
    for address in (LISTED4, LISTED6):
        assert gateways.without.reach("gateway", address) == "open"
        assert gateways.with_.reach("gateway", address) == "refused"
    gateways.logs("drop", dst=LISTED4, client="198.51.100.1", app="example")


@pytest.mark.parametrize("kind", ["fragments", "hop-by-hop", "destination-options", "icmp"])
def test_51_fragments_headers_and_other_protocols(gateways: Gateways, kind: str) -> None:
    """What arrives at the internet's side is counted there."""
    script = f"""
import sys
from scapy.all import IP, IPv6, UDP, ICMP, Raw, IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, PadN, fragment, send, conf
conf.verb = 0
kind = {kind!r}
for _ in range(3):
    if kind == "fragments":
        for part in fragment(IP(dst="{LISTED4}") / UDP(sport=4000, dport=443) / Raw(bytes(3000)), fragsize=1200):
            send(part)
    elif kind == "icmp":
        send(IP(dst="{LISTED4}") / ICMP() / Raw(bytes(600)))
    else:
        header = IPv6ExtHdrHopByHop(options=[PadN()]) if kind == "hop-by-hop" else IPv6ExtHdrDestOpt(options=[PadN()])
        send(IPv6(dst="{LISTED6}") / header / UDP(sport=4000, dport=443) / Raw(b"x"))
"""

    def way(rig: Rig) -> bool:
        (rig.directory / "count.nft").write_text(
            "table inet seen {\n counter there {\n }\n chain in {\n type filter hook prerouting priority -300\n"
            f" ip daddr {LISTED4} counter name there\n ip6 daddr {LISTED6} counter name there\n }}\n}}\n"
        )
        rig.run("internet", "nft", "-f", str(rig.directory / "count.nft"))
        try:
            rig.run("client", sys.executable, "-c", script)
            time.sleep(0.2)
            return "packets 0 " not in rig.run("internet", "nft", "list", "counter", "inet", "seen", "there").stdout
        finally:
            rig.run("internet", "nft", "delete table inet seen")

    gateways.closes(way)
    gateways.logs("drop", dst=LISTED6 if "-" in kind else LISTED4, app="example")


@pytest.mark.parametrize(("name", "qtype"), [("rebind.test", "A"), ("rebind.test", "AAAA"), ("meta.test", "A")])
def test_55_a_public_name_for_a_private_address(gateways: Gateways, name: str, qtype: str) -> None:
    gateways.agent.write_config(dns={"rebind": True})
    gateways.agent.cli("reload")
    try:
        gateways.closes(resolves(GATEWAY4, name, qtype))
    finally:
        gateways.agent.write_config(dns={"rebind": False})
        gateways.agent.cli("reload")
    assert resolves(GATEWAY4, name, qtype)(gateways.with_), "and only on demand"
