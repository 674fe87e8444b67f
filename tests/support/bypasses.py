"""Two gateways side by side, one of them with the agent, and the ways that a client may try through both.

What each row of docs/bypasses.md has shown is written down while its tests run (`SHOWN`), so that a last test can say of every
row whether the way was gone without the agent, was closed with it, stands in the log, and all of it in both families.
"""

import contextlib
import random
import socket
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dns.rdata
import dns.rdatatype

from support.agent import Agent
from support.worker import framed, read
from tools.rig import LAN4, LAN6, UPSTREAM4, UPSTREAM6, Rig, until

CATALOGUE = str(Path(__file__).parent.parent.parent / "blocklists")
GATEWAY4, GATEWAY6 = f"{LAN4}.1", f"{LAN6}:1"
GATEWAY = (GATEWAY4, GATEWAY6)  # the resolver that clients are told of
LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
FREE4, FREE6 = "203.0.113.21", "2001:db8:3::21"
UNKNOWN4, UNKNOWN6 = "203.0.113.90", "2001:db8:3::90"  # no name leads there
RESOLVER4, RESOLVER6 = "9.9.9.9", "2620:fe::fe"  # public ones that the catalogue lists
LATER = 15.0  # seconds; an attempt like one before stands in the log when ten are over
APPS = {
    "example": {"payment": ["alipay.example", "bücher.example", f"{LISTED4}/29", "2001:db8:99::/48"], "core": ["late.test"]}
}
ECH = 'ech="AAb+DQACq7s="'


def rr(name: str, rtype: str, rdata: str) -> str:
    """A record of any type for dnsmasq."""
    wire = dns.rdata.from_text("IN", rtype, rdata).to_wire()
    assert wire is not None
    return f"dns-rr={name},{int(dns.rdatatype.from_text(rtype))},{wire.hex()}"


RECORDS = (
    f"host-record=free.test,{FREE4},{FREE6}", "txt-record=free.test,hello",
    "host-record=edge.alipay.example,203.0.113.20,2001:db8:3::20", "cname=one.test,edge.alipay.example",
    *(f"cname=c{n}.test,c{n + 1}.test" for n in range(1, 7)), "cname=c7.test,edge.alipay.example",
    "cname=d1.test,d2.alipay.example", "cname=d2.alipay.example,free.test",
    rr("dname.test", "DNAME", "alipay.example."), rr("mx.test", "MX", "10 mx.alipay.example."),
    rr("srv.test", "SRV", "1 1 443 srv.alipay.example."), rr("ns.test", "NS", "ns.alipay.example."),
    rr("naptr.test", "NAPTR", '1 1 "s" "x" "" n.alipay.example.'), rr("svcb.test", "SVCB", "1 svc.alipay.example."),
    rr("https.test", "HTTPS", "1 web.alipay.example."), rr("alias.test", "HTTPS", "0 web.alipay.example."),
    rr("hint4.test", "HTTPS", f'1 . alpn="h3" ipv4hint="{LISTED4}"'), rr("hint6.test", "SVCB", f'1 . ipv6hint="{LISTED6}"'),
    rr("plain.test", "HTTPS", '1 . alpn="h2"'), rr("ech.test", "HTTPS", f'1 . alpn="h2" {ECH}'),
    "host-record=203-0-113-201.wild.test,203.0.113.201", "host-record=six.wild.test,2001:db8:99::201",
    "host-record=mapped.test,::ffff:203.0.113.201",
    "host-record=nat64.test,64:ff9b::203.0.113.201", "host-record=to4.test,2002:cb00:71c9::1",
    "host-record=rebind.test,192.168.1.1,fd00::1", "host-record=meta.test,169.254.169.254",
    "host-record=late.test,203.0.113.22", "host-record=steady.test,203.0.113.24,2001:db8:3::24",
    "host-record=shared.test,203.0.113.31,2001:db8:3::31", "host-record=shared.alipay.example,203.0.113.31,2001:db8:3::31",
    "host-record=long.test,203.0.113.25,86400", "host-record=long.alipay.example,203.0.113.26,86400",
)  # fmt: skip
NETWORKS = (
    "2001:db8:99::/48", "64:ff9b::/96", "2002:cb00:7100::/40", "119.29.29.0/24", "203.107.1.0/24", "2401:b180:7001::/48",
    "59.82.113.0/24", "8.8.8.8/32", "9.9.9.9/32", "2001:4860:4860::/48", "2620:fe::/48", "180.153.202.0/24", "2402:4e00::/32",
)  # fmt: skip

SHOWN: defaultdict[int, set[str]] = defaultdict(set)  # by row: without, closed, log, IPv4, IPv6
_row = 0

#: each try of a way, whether it worked
Way = Callable[[Rig], list[bool]]


def of_row(number: int) -> None:
    """What is shown from now on is shown of this row."""
    global _row
    _row = number


def show(what: str) -> None:
    SHOWN[_row].add(what)


def towards(address: str) -> str:
    """The address, noted as one of its family."""
    show("IPv6" if ":" in address else "IPv4")
    return address


def works(way: Way, rig: Rig) -> None:
    """Without the agent, at every try."""
    tries = way(rig)
    assert tries, "tried"
    assert all(tries), f"without the agent it works: {tries}"
    show("without")


def fails(way: Way, rig: Rig) -> None:
    """With the agent, at every try."""
    tries = way(rig)
    assert tries, "tried"
    assert not any(tries), f"with the agent it does not: {tries}"
    show("closed")


class Gateways(NamedTuple):
    """The same network twice: behind a gateway that only forwards, and behind one with the agent."""

    without: Rig
    with_: Rig
    agent: Agent

    def closes(self, way: Way) -> None:
        works(way, self.without)
        fails(way, self.with_)

    def logs(self, event: str, **members: object) -> None:
        logs(self.agent, event, **members)


def logs(agent: Agent, event: str, **members: object) -> None:
    """The log has a record of this kind. Addresses and names are best such as nobody else tries."""
    until(
        lambda: any(all(e.get(key) == value for key, value in members.items()) for e in agent.events(event)),
        f"the log has {event} {members}", LATER,
    )  # fmt: skip
    show("log")


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


def sections(root: Path, group: int, **dns_: Any) -> dict[str, dict[str, Any]]:
    """A configuration with the catalogue, and with an app of the tests' own."""
    return {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [UPSTREAM4], "workers": 1} | dns_,
        "policy": {"apps": ["example", "alipay", "wechat-pay", "qq"], "functions": ["payment", "telemetry"]},
        "lists": {"apps": [CATALOGUE, str(root / "apps")]},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": group},
    }


# ── ways ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def server_of(rig: Rig, server: str) -> str:
    """The server that the client asks: a gateway without the agent is no resolver, so its clients ask the upstream."""
    if server not in GATEWAY or rig.run("gateway", "ss", "-Hlun", "sport = :53", check=False).stdout:
        return server
    return UPSTREAM6 if ":" in server else UPSTREAM4


def resolves(servers: str | tuple[str, ...], name: str, *words: str) -> Way:
    """Does a client get an answer with content, from each of these?"""

    def way(rig: Rig) -> list[bool]:
        tried = []
        for server in (servers,) if isinstance(servers, str) else servers:
            answer = rig.dig("client", f"@{server_of(rig, towards(server))}", name, *words)
            tried.append(answer.rcode == "NOERROR" and bool(answer.answers))
        return tried

    return way


def reaches(*addresses: str, port: int = 443, udp: bool = False) -> Way:
    return lambda rig: [rig.reach("client", towards(a), port, udp=udp, seconds=1.0) == "open" for a in addresses]


def exchanges(addresses: tuple[str, ...], content: bytes, port: int = 80) -> Way:
    """Does what a client sends over TCP come back (the servers echo)?"""

    def one(rig: Rig, address: str) -> bool:
        with rig.socket("client", socket.SOCK_STREAM, address) as sock:
            sock.settimeout(2)
            try:
                sock.connect((address, port))
                sock.sendall(content)
                return sock.recv(4096) == content
            except OSError:
                return False

    return lambda rig: [one(rig, towards(address)) for address in addresses]


def ask(rig: Rig, packet: bytes, server: str = GATEWAY4, *, tcp: bool = False) -> bytes:
    """The reply to a raw packet; nothing when none comes."""
    server = server_of(rig, towards(server))
    with rig.socket("client", socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM, server) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect((server, 53))
            sock.sendall(framed(packet) if tcp else packet)
            return read(sock) if tcp else sock.recv(4096)
        except OSError:
            return b""


def asks(packet: bytes, *, tcp: bool = False) -> Way:
    """Is a raw packet answered with content?"""

    def content(reply: bytes) -> bool:
        return len(reply) > 12 and reply[3] & 15 == 0 and struct.unpack_from("!H", reply, 6)[0] > 0

    return lambda rig: [content(ask(rig, packet, server, tcp=tcp)) for server in GATEWAY]


def refused(rig: Rig, packet: bytes, codes: tuple[int, ...], *, tcp: bool = False) -> bool:
    """Is it answered with one of these rcodes, over both families, or not at all?"""
    replies = [ask(rig, packet, server, tcp=tcp) for server in GATEWAY]
    return all(not reply or reply[3] & 15 in codes for reply in replies)


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def raw(name: bytes, qtype: int = 1, head: bytes = b"\x01\x00\0\1\0\0\0\0\0\0", tail: bytes = b"") -> bytes:
    """A query, of which every part may be crooked."""
    return random.randbytes(2) + head + name + qtype.to_bytes(2) + b"\0\1" + tail


def blocked(rig: Rig, packet: bytes, *, tcp: bool = False) -> bool:
    """Does a raw packet get NXDOMAIN, over both families?"""
    replies = [ask(rig, packet, server, tcp=tcp) for server in GATEWAY]
    return all(reply and reply[3] & 15 == 3 for reply in replies)
