"""Rows 1 to 19 of docs/bypasses.md: other resolvers, encrypted DNS, in-app resolvers, fixed addresses."""

import os
import signal
import time
from pathlib import Path

import pytest

from support import bypasses
from support.agent import running
from support.bypasses import (
    APPS,
    FREE4,
    FREE6,
    GATEWAY,
    GATEWAY4,
    LISTED4,
    LISTED6,
    RESOLVER4,
    RESOLVER6,
    UNKNOWN4,
    UNKNOWN6,
    Gateways,
    exchanges,
    fails,
    logs,
    network,
    reaches,
    resolves,
    works,
)
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, WEB4, WEB6, until

pytestmark = pytest.mark.root


@pytest.mark.parametrize("server", [OTHER4, OTHER6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_01_a_hard_coded_resolver(gateways: Gateways, server: str, transport: str) -> None:
    name = f"{transport[1:]}-{'six' if ':' in server else 'four'}.alipay.example"
    gateways.closes(resolves(server, name, transport))
    gateways.logs("dns", qname=name, app="example", list="example/payment.list", line=1)


@pytest.mark.parametrize("server", [RESOLVER4, RESOLVER6])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_02_a_public_resolver_on_another_port(gateways: Gateways, server: str, transport: str) -> None:
    gateways.closes(resolves(server, "www.alipay.example", "-p", "9953", transport))
    gateways.logs("drop", dst=server, dport=9953, app="bypass", function="doh")


def test_02_dnscrypt_to_a_public_resolver(gateways: Gateways) -> None:
    gateways.closes(reaches(RESOLVER4, udp=True))
    gateways.logs("drop", dst=RESOLVER4, dport=443, proto="udp", app="bypass")


def test_03_tcp_alone(gateways: Gateways) -> None:
    gateways.closes(resolves(GATEWAY, "tcp.alipay.example", "+tcp"))
    gateways.logs("dns", qname="tcp.alipay.example")


@pytest.mark.parametrize("address", [WEB4, WEB6])
def test_04_dns_over_tls(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address, port=853))
    began = time.monotonic()
    assert gateways.with_.reach("client", address, 853) == "refused"
    assert time.monotonic() < began + 1, "at once, so that the client falls back"
    gateways.logs("drop", dst=address, dport=853, proto="tcp", app="bypass", function="dot")


@pytest.mark.parametrize("address", [WEB4, WEB6])
@pytest.mark.parametrize("port", [853, 784, 8853])
def test_05_dns_over_quic(gateways: Gateways, address: str, port: int) -> None:
    gateways.closes(reaches(address, port=port, udp=True))
    gateways.logs("drop", dst=address, dport=port, proto="udp", app="bypass", function="doq")


def test_06_dns_over_https_by_name(gateways: Gateways) -> None:
    for name in ("cloudflare-dns.com", "dns.google", "dns.quad9.net"):
        gateways.closes(resolves(GATEWAY, name))
    gateways.logs("dns", qname="cloudflare-dns.com", app="bypass", function="doh")


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6])
def test_06_dns_over_https_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address))
    gateways.logs("drop", dst=address, dport=443, proto="tcp", app="bypass", function="doh", names=[], direct=True)


@pytest.mark.parametrize("address", [RESOLVER4, RESOLVER6])
def test_07_dns_over_http3(gateways: Gateways, address: str) -> None:
    gateways.closes(reaches(address, udp=True))
    gateways.logs("drop", dst=address, dport=443, proto="udp", app="bypass", function="doh")


@pytest.mark.parametrize("qtype", ["A", "AAAA"])
def test_08_firefox_turns_to_its_own_resolver(gateways: Gateways, qtype: str) -> None:
    for name in ("use-application-dns.net", "USE-application-DNS.net"):
        gateways.closes(resolves(GATEWAY, name, qtype))
        for other in ("A", "AAAA", "HTTPS", "TXT", "ANY"):
            assert gateways.with_.dig("client", f"@{GATEWAY4}", name, other).rcode == "NXDOMAIN"
    gateways.logs("dns", qname="use-application-dns.net", app="bypass", function="canary", action="nxdomain")


def test_09_private_relay(gateways: Gateways) -> None:
    for name in ("mask.icloud.com", "mask-h2.icloud.com"):
        gateways.closes(resolves(GATEWAY, name))
        began = time.monotonic()
        assert gateways.with_.dig("client", f"@{GATEWAY4}", name, "HTTPS").rcode == "NXDOMAIN", "a negative answer, not silence"
        assert time.monotonic() < began + 1
    gateways.logs("dns", qname="mask.icloud.com", app="bypass", function="relay")


def test_10_discovery_of_designated_resolvers(gateways: Gateways) -> None:
    """Nothing of ours is blocked by it: the name is answered, and the answer is empty. So it is no attempt in the log."""
    gateways.closes(resolves(GATEWAY, "_dns.resolver.arpa", "A"))
    for name, qtype in (("_dns.resolver.arpa", "SVCB"), ("resolver.arpa", "A"), ("x.y.resolver.arpa", "HTTPS")):
        for server in GATEWAY:
            answer = gateways.with_.dig("client", f"@{server}", name, qtype)
            assert (answer.rcode, answer.answers) == ("NOERROR", ())
    assert gateways.with_.dig("client", f"@{GATEWAY4}", "xresolver.arpa").answers, "a name that only ends alike"


@pytest.mark.parametrize("server", ["8.8.8.8", "2001:4860:4860::8888"])
def test_11_a_known_public_resolver_is_set_on_the_client(gateways: Gateways, server: str) -> None:
    name = f"{'six' if ':' in server else 'four'}.known.alipay.example"
    if ":" in server:  # dnsmasq answers on IPv6 for addresses of interfaces only
        for rig in (gateways.without, gateways.with_):
            rig.run("internet", "ip", "address", "replace", f"{server}/128", "dev", "lo")
    gateways.closes(resolves(server, name))
    gateways.logs("dns", qname=name, client=f"{LAN6}:10" if ":" in server else f"{LAN4}.10")
    gateways.closes(reaches(server, port=853))


def test_12_a_second_resolver_while_ours_is_down(tmp_path: Path) -> None:
    others = (OTHER4, OTHER6)
    with network() as rig:
        works(resolves(others, "second.alipay.example"), rig)
        works(reaches(LISTED4, LISTED6), rig)
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **bypasses.sections(tmp_path, 8401)) as agent:
            children = agent.children()
            for pid in children:
                os.kill(pid, signal.SIGSTOP)
            try:
                fails(resolves((*GATEWAY, *others), "second.alipay.example", "+time=1"), rig)
                fails(reaches(LISTED4, LISTED6, port=8080), rig)
                assert all(reaches(FREE4, FREE6)(rig))
            finally:
                for pid in children:
                    os.kill(pid, signal.SIGCONT)
            assert rig.dig("client", f"@{OTHER4}", "second.alipay.example").rcode == "NXDOMAIN"
            logs(agent, "dns", qname="second.alipay.example", app="example")
            logs(agent, "drop", dst=LISTED4, dport=8080, app="example")


# ── in-app resolvers and fixed addresses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", ["119.29.29.98", "119.29.29.99"])
def test_13_tencent_httpdns_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(exchanges((address,), b"GET /d?dn=7765 HTTP/1.1\r\n\r\n"))
    gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")


def only_questions(gateways: Gateways, question: bytes, others: tuple[bytes, ...]) -> None:
    """A question in clear text is refused wherever it goes; what only looks like one is not."""

    def get(path: bytes) -> bytes:
        return b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"

    both = (UNKNOWN4, UNKNOWN6)
    gateways.closes(exchanges(both, get(question)))
    for address in both:
        gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")
    for other in others:
        assert all(exchanges(both, get(other))(gateways.with_))


@pytest.mark.parametrize("path", [b"/d?dn=7765&id=1&alg=des", b"/conf?id=1&alg=aes"])
def test_13_tencent_httpdns_at_an_address_nobody_knows(gateways: Gateways, path: bytes) -> None:
    only_questions(gateways, path, (b"/", b"/d?dm=1", b"/download?dn=1", b"/config?id=1"))


@pytest.mark.parametrize("address", ["203.107.1.1", "2401:b180:7001::31d"])
def test_14_alibaba_httpdns_by_address(gateways: Gateways, address: str) -> None:
    gateways.closes(exchanges((address,), b"GET /139450/ss HTTP/1.1\r\n\r\n"))
    gateways.logs("drop", dst=address, dport=80, app="bypass", function="httpdns")


@pytest.mark.parametrize("path", [b"/v2/d?id=1&m=0", b"/139450/d?host=a", b"/139450/sign_d?host=a", b"/139450/resolve?host=a"])
def test_14_alibaba_httpdns_at_an_address_nobody_knows(gateways: Gateways, path: bytes) -> None:
    only_questions(gateways, path, (b"/139450/resources/a.js", b"/13945/d?host=a", b"/abcdef/d?host=a", b"/v2/data?id=1"))


def test_15_wechat_newdns(gateways: Gateways) -> None:
    for name in ("dns.weixin.qq.com", "dns.weixin.qq.com.cn", "aedns.weixin.qq.com"):
        gateways.closes(resolves(GATEWAY, name))
    gateways.logs("dns", qname="dns.weixin.qq.com", app="wechat-pay", function="httpdns")
    gateways.closes(reaches("180.153.202.85", port=80))
    gateways.logs("drop", dst="180.153.202.85", app="wechat-pay", function="httpdns")


def test_16_alibaba_amdc_and_its_fallback_to_addresses(gateways: Gateways) -> None:
    for name in ("amdc.alipay.com", "amdc.m.taobao.com"):
        gateways.closes(resolves(GATEWAY, name))
    for address in ("59.82.113.10", "59.82.113.219"):
        gateways.closes(reaches(address, port=80))
        gateways.logs("drop", dst=address, app="bypass", function="httpdns")


@pytest.mark.parametrize("address", [LISTED4, LISTED6])
def test_17_a_hard_coded_address(gateways: Gateways, address: str) -> None:
    for udp in (False, True):
        gateways.closes(reaches(address, port=8080, udp=udp))
        gateways.logs("drop", dst=address, dport=8080, proto="udp" if udp else "tcp", names=[], direct=True, app="example")


@pytest.mark.parametrize(("address", "qtype"), [("203.0.113.31", "A"), ("2001:db8:3::31", "AAAA")])
def test_18_an_address_that_others_share(gateways: Gateways, address: str, qtype: str) -> None:
    """The way that stays open on purpose: the neighbour works, and the administrator is told of both.

    The blocked name is closed all the same.
    """
    with_, agent = gateways.with_, gateways.agent
    works(reaches(address), gateways.without)
    assert with_.dig("client", f"@{GATEWAY4}", "shared.test", qtype).answers == (f"{qtype} {address}",)
    time.sleep(0.3)
    gateways.closes(resolves(GATEWAY, "shared.alipay.example", qtype))
    until(lambda: agent.answer("why", address, status=1).get("spared"), "the conflict is told")
    assert all(reaches(address)(with_)), "open"
    spared = {"address": address, "name": "shared.alipay.example", "neighbour": "shared.test"}
    assert spared in agent.answer("status")["firewall"]["learning"]["spared"]
    gateways.logs("dns", qname="shared.alipay.example", qtype=qtype, app="example")
