"""The examples of docs/gateway.md, at work on a gateway: the router, DHCP and router advertisements, a VPN's interface."""

import fcntl
import os
import re
import select
import socket
import struct
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent import running
from support.box import Box, Firewalld
from support.gateway_page import PAGE, advertised_resolvers, block, leased_resolvers
from tools.rig import LAN4, LAN6, OTHER4, UPSTREAM4, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
APPS = {"alipay": {"payment": ["alipay.example", "203.0.113.200/29", "2001:db8:99::/48"]}}
TUNNEL = "10.9.0"


def configuration(wanted: str) -> dict[str, dict[str, Any]]:
    """A configuration of the page, with the rig's upstream, one resolver, and rules that go with it."""
    sections: dict[str, dict[str, Any]] = {"firewall": {}, **tomllib.loads(block("toml", wanted))}
    sections["dns"] |= {"upstream": [UPSTREAM4], "workers": 1}
    sections["firewall"] = {"enabled": True, **sections["firewall"], "on_stop": "remove"}
    return sections


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:99::/48")
        made.serve_dns()
        made.serve_web()
        for address in (LISTED4, LISTED6):
            assert made.reach("client", address) == "open", "before anybody runs"
        yield made


def test_the_router_polices_its_clients_before_their_addresses_are_translated(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "router.nft").write_text(block("nft"))
    for line in block("ini").splitlines():
        assert rig.run("gateway", "sysctl", "-n", line.partition(" = ")[0]).stdout == "1\n", "the rig forwards as the page says"
    rig.run("gateway", "nft", "-f", str(tmp_path / "router.nft"))
    rig.run("internet", "ip", "route", "delete", f"{LAN4}.0/24")  # answers come only where addresses are translated
    try:
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **configuration('lan = ["lan0"]')) as agent:
            for address in (LISTED4, LISTED6):
                assert rig.reach("client", address) == "refused"
            for address in (WEB4, WEB6):
                assert rig.reach("client", address) == "open"
            for server in (OTHER4, f"{LAN4}.1", f"{LAN6}:1"):
                assert rig.dig("client", f"@{server}", "www.alipay.example").rcode == "NXDOMAIN"
                assert rig.dig("client", f"@{server}", "free.example").answers == (f"A {WEB4}",)
            expected = {"dst": LISTED4, "client": f"{LAN4}.10", "app": "alipay"}
            until(
                lambda: any(expected.items() <= e.items() for e in agent.events("drop")), "the log has the client's own address"
            )
    finally:
        rig.run("gateway", "nft", "delete", "table", "ip", "router")
        rig.run("internet", "ip", "route", "add", f"{LAN4}.0/24", "via", "198.51.100.1")


def test_dnsmasq_tells_clients_of_us_and_leaves_port_53_alone(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "dnsmasq.conf").write_text(block("dnsmasq"))
    with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **configuration('lan = ["lan0"]')):
        words = (
            "--keep-in-foreground",
            f"--conf-file={tmp_path}/dnsmasq.conf",
            f"--dhcp-leasefile={tmp_path}/leases",
            "--user=root",
        )
        rig.start("gateway", "dnsmasq", *words)
        until(lambda: rig.within("client", leased_resolvers) == [f"{LAN4}.1"], "the lease names us alone")
        until(lambda: rig.within("client", advertised_resolvers) == [f"{LAN6}:1"], "so does the advertisement")
        assert rig.dig("client", f"@{LAN4}.1", "www.alipay.example").rcode == "NXDOMAIN"


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box("radvd", "kea-dhcp4-server", "firewalld") as made:
        yield made


def test_radvd_advertises_us(box: Box, rig: Rig) -> None:
    box.write("/etc/radvd.conf", block("radvd"))
    box.run(rig, "radvd", "--configtest")
    started = box.start(rig, "radvd", "--nodaemon", "--pidfile=/run/radvd.pid", "--username=root")
    try:
        until(lambda: rig.within("client", advertised_resolvers) == [f"{LAN6}:1"], "the advertisement names us alone")
    finally:
        started.kill()
        started.wait()


def test_kea_takes_its_configuration(box: Box, rig: Rig) -> None:
    box.write("/etc/kea/kea-dhcp4.conf", block("json"))
    box.run(rig, "kea-dhcp4", "-t", "/etc/kea/kea-dhcp4.conf")


def test_firewalld_lets_clients_ask_us_with_the_command_of_the_page(box: Box, rig: Rig, tmp_path: Path) -> None:
    (command,) = re.findall(r"`firewall-cmd (--zone=ZONE [^`]*)`", PAGE)
    firewalld = Firewalld(box, rig)
    with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **configuration('lan = ["lan0"]')):
        firewalld.start()
        try:
            firewalld.command("--zone=internal", "--change-interface=lan0")
            assert rig.dig("client", f"@{LAN4}.1", "www.alipay.example").rcode == "", "it is in the way"
            firewalld.command(*command.replace("ZONE", "internal").replace(" --permanent", "").split())
            assert rig.dig("client", f"@{LAN4}.1", "www.alipay.example").rcode == "NXDOMAIN"
        finally:
            firewalld.stop()


# ── a VPN's interface ────────────────────────────────────────────────────────────────────────────────────────────────────


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def _packet(destination: str, protocol: int, payload: bytes) -> bytes:
    """From a client in the tunnel; its transport's checksum is made here, where TCP has it."""
    source, target = socket.inet_aton(f"{TUNNEL}.2"), socket.inet_aton(destination)
    if protocol == socket.IPPROTO_TCP:
        payload = (
            payload[:16]
            + _sum(source + target + struct.pack("!HH", protocol, len(payload)) + payload).to_bytes(2)
            + payload[18:]
        )
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0, source, target)
    return head[:10] + _sum(head).to_bytes(2) + head[12:] + payload


def _tun() -> int:
    """A point-to-point interface wg0 whose other end is this descriptor (TUNSETIFF, without a packet information header)."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"wg0", 0x1001))
    return device


def _exchange(device: int, packet: bytes, answers: Callable[[bytes], bool]) -> bytes:
    """Send it into the tunnel, also again; the first packet that comes back and answers it, nothing without one."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        os.write(device, packet)
        while select.select([device], [], [], 1.0)[0]:
            if answers(found := os.read(device, 2048)):
                return found
    return b""


def test_clients_in_a_tunnel_are_filtered_and_served(rig: Rig, tmp_path: Path) -> None:
    device = rig.within("gateway", _tun)
    try:
        for command in (f"address add {TUNNEL}.1/24 dev wg0", "link set wg0 up"):
            rig.run("gateway", "ip", *command.split())
        rig.run("internet", "ip", "route", "add", f"{TUNNEL}.0/24", "via", "198.51.100.1")
        (tmp_path / "without").mkdir()
        with running(tmp_path / "without", prefix=rig.prefix("gateway"), apps=APPS, **configuration('lan = ["lan0"]')):
            assert rig.reach("client", LISTED4) == "refused"
            assert _syn(device, LISTED4) == "open", "once lan names an interface, others are not filtered"
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **configuration("wg0")) as agent:
            query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + b"\3www\6alipay\7example\0\0\1\0\1"
            datagram = struct.pack("!4H", 4000, 53, 8 + len(query), 0) + query
            reply = _exchange(device, _packet(OTHER4, socket.IPPROTO_UDP, datagram), lambda p: p[9] == socket.IPPROTO_UDP)
            assert socket.inet_ntoa(reply[12:16]) == OTHER4, "its source is the address that the query was sent to"
            assert reply[28 + 3] & 15 == 3, "and says NXDOMAIN"
            assert _syn(device, LISTED4) == "refused"
            assert _syn(device, WEB4) == "open"
            expected = {"dst": LISTED4, "client": f"{TUNNEL}.2", "app": "alipay"}
            until(lambda: any(expected.items() <= e.items() for e in agent.events("drop")), "the log names the client")
            assert not any("client_mac" in e for e in agent.events("drop"))
    finally:
        os.close(device)
        rig.run("internet", "ip", "route", "delete", f"{TUNNEL}.0/24")


def _syn(device: int, address: str) -> str:
    syn = struct.pack("!HHIIBBHHH", 4001, 443, 1, 0, 0x50, 2, 1024, 0, 0)
    answer = _exchange(
        device,
        _packet(address, socket.IPPROTO_TCP, syn),
        lambda p: p[9] == socket.IPPROTO_TCP and p[12:16] == socket.inet_aton(address),
    )
    return {0x12: "open", 0x14: "refused", 0x04: "refused"}.get(answer[33], "") if answer else "silent"
