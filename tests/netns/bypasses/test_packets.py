"""Rows 45 to 55 of docs/bypasses.md: packets, open flows, what happens to the agent and its rules; and every row's account."""

import os
import re
import signal
import socket
import sys
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
    LISTED4,
    LISTED6,
    SHOWN,
    UNKNOWN4,
    UNKNOWN6,
    Gateways,
    fails,
    logs,
    network,
    reaches,
    resolves,
    towards,
    works,
)
from tools.rig import OTHER4, OTHER6, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

#: a firewall of somebody else that accepts whatever is established
ACCEPTING = (
    "table inet other { chain forward { type filter hook forward priority filter; policy accept;"
    " ct state established accept; }; }"
)


class Flow:
    """A connection whose other end sends back what it gets."""

    def __init__(self, rig: Rig, address: str, port: int) -> None:
        self._sock = rig.socket("client", socket.SOCK_STREAM, towards(address))
        self._sock.settimeout(5)
        self._sock.connect((address, port))
        assert self.goes_on(1), "before"

    def goes_on(self, times: int = 50) -> bool:
        """Does it still carry something there and back, so many times?"""
        try:
            for _ in range(times):
                self._sock.sendall(b"more")
                if not self._sock.recv(64):
                    return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("beside", ["nobody", "other"])
@pytest.mark.parametrize("family", [4, 6])
def test_45_a_flow_that_was_open_before(gateways: Gateways, beside: str, family: int) -> None:
    number = {"nobody": 61, "other": 62}[beside]
    address = f"203.0.113.{number}" if family == 4 else f"2001:db8:3::{number}"
    with_ = gateways.with_
    if beside == "other":
        with_.run("gateway", "nft", ACCEPTING)
    flows = [Flow(gateways.without, address, 443), Flow(with_, address, 443)]
    try:
        gateways.agent.cli("block", address)
        works(lambda rig: [flows[0].goes_on()], gateways.without)
        fails(lambda rig: [flows[1].goes_on()], with_)
        gateways.logs("drop", dst=address, app="local", function="block")
    finally:
        for flow in flows:
            flow.close()
        gateways.agent.cli("forget", address)
        if beside == "other":
            with_.run("gateway", "nft", "delete table inet other")
    assert with_.reach("client", address) == "open"


@pytest.mark.parametrize("address", [UNKNOWN4, UNKNOWN6])
def test_45_an_open_flow_of_dns_over_tls_when_that_is_closed(gateways: Gateways, address: str) -> None:
    """Its next packet may be the server's, which must not let the flow through for good."""
    agent = gateways.agent
    agent.write_config(policy={"bypass": ["doh"]})
    agent.cli("reload")
    flows = [Flow(gateways.without, address, 853), Flow(gateways.with_, address, 853)]
    try:
        agent.write_config(policy={"bypass": ["dot", "doq", "doh", "httpdns", "canary", "relay"]})
        agent.cli("reload")
        works(lambda rig: [flows[0].goes_on()], gateways.without)
        fails(lambda rig: [flows[1].goes_on()], gateways.with_)
    finally:
        for flow in flows:
            flow.close()
    until(
        lambda: any(e["app"] == "bypass" and address in (e["dst"], e["client"]) for e in agent.events("drop")),
        "it is logged",
        15,
    )


@pytest.mark.parametrize(("qtype", "address"), [("A", WEB4), ("AAAA", WEB6)])
def test_47_the_first_packet_after_an_answer(gateways: Gateways, qtype: str, address: str) -> None:
    """Whoever asks for an unblocked name gets through at once, although a blocked one led to its address a moment before.

    What the agent must not close. What it closes is the blocked name, at every one of these moments.
    """
    agent, with_ = gateways.agent, gateways.with_
    agent.cli("block", "early.test")
    try:
        for number in range(5):  # all lead to the same address, and so does what follows
            gateways.closes(resolves(GATEWAY, f"{qtype.lower()}{number}.early.test", qtype))
            answer = with_.dig("client", f"@{GATEWAY[0]}", f"n{number}.late-neighbour.test", qtype)
            assert answer.answers == (f"{qtype} {address}",)
            assert all(reaches(address)(with_))
        gateways.logs("dns", qname=f"{qtype.lower()}0.early.test", app="local")
    finally:
        agent.cli("forget", "early.test")


def test_48_somebody_flushes_the_ruleset(gateways: Gateways) -> None:
    for number, command in enumerate(("flush ruleset", "delete table inet embargo")):
        for rig in (gateways.without, gateways.with_):
            rig.run("gateway", "nft", command, check=False)
        gateways.closes(reaches(LISTED4, LISTED6, port=80 + number * 8000))
        gateways.closes(resolves((OTHER4, OTHER6), f"flushed{number}.alipay.example"))
        gateways.logs("dns", qname=f"flushed{number}.alipay.example")
    gateways.logs("drop", dst=LISTED6, dport=80, app="example")


def test_49_the_agent_is_killed(tmp_path: Path) -> None:
    """Nobody is left to write a log: the kernel counts, and the next run finds its counters and says what had no record."""
    sections = bypasses.sections(tmp_path, 8402)
    with network() as rig:
        works(reaches(LISTED4, LISTED6), rig)
        with running(tmp_path, prefix=rig.prefix("gateway"), apps=APPS, **sections) as agent:
            assert agent.process is not None
            os.kill(agent.process.pid, signal.SIGKILL)
            until(agent.ended, "it is dead")
            time.sleep(0.5)
            fails(reaches(LISTED4, LISTED6), rig)
            fails(resolves((OTHER4, OTHER6), "killed.alipay.example", "+time=1"), rig)
            assert all(reaches(FREE4, FREE6)(rig))
            counted = rig.run("gateway", "nft", "list", "counter", "inet", "embargo", "example_payment").stdout
            assert int(re.findall(r"packets (\d+)", counted)[0]) >= 2
            agent.start()
            fails(reaches(LISTED4, LISTED6, port=8080), rig)
            logs(agent, "drop", dst=LISTED4, dport=8080, app="example")


def test_50_the_gateways_own_processes_and_its_containers(gateways: Gateways) -> None:
    def way(rig: Rig) -> list[bool]:
        return [rig.reach("gateway", towards(address)) == "open" for address in (LISTED4, LISTED6)]

    gateways.closes(way)
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
    listed = towards(LISTED6 if "-" in kind else LISTED4)

    def way(rig: Rig) -> list[bool]:
        (rig.directory / "count.nft").write_text(
            "table inet seen {\n counter there {\n }\n chain in {\n type filter hook prerouting priority -300\n"
            f" ip daddr {LISTED4} counter name there\n ip6 daddr {LISTED6} counter name there\n }}\n}}\n"
        )
        rig.run("internet", "nft", "-f", str(rig.directory / "count.nft"))
        try:
            rig.run("client", sys.executable, "-c", script)
            time.sleep(0.2)
            return ["packets 0 " not in rig.run("internet", "nft", "list", "counter", "inet", "seen", "there").stdout]
        finally:
            rig.run("internet", "nft", "delete table inet seen")

    gateways.closes(way)
    gateways.logs("drop", dst=listed, app="example")


@pytest.mark.parametrize(("name", "qtype"), [("rebind.test", "A"), ("rebind.test", "AAAA"), ("meta.test", "A")])
def test_55_a_public_name_for_a_private_address(gateways: Gateways, name: str, qtype: str) -> None:
    """The address is left out of an answer that stays: nothing is refused, and the log has no attempt."""
    gateways.agent.write_config(dns={"rebind": True})
    gateways.agent.cli("reload")
    try:
        gateways.closes(resolves(GATEWAY, name, qtype))
    finally:
        gateways.agent.write_config(dns={"rebind": False})
        gateways.agent.cli("reload")
    assert all(resolves(GATEWAY, name, qtype)(gateways.with_)), "and only on demand"


#: answered otherwise, and not refused: no attempt of an app is in it
NO_ATTEMPT = {10, 23, 55}


def test_every_row_that_was_tried_has_shown_all_of_it() -> None:
    """Gone without the agent, closed with it, in the log, over both families."""
    whole = {"without", "closed", "log", "IPv4", "IPv6"}
    lacking = {row: whole - shown - ({"log"} if row in NO_ATTEMPT else set()) for row, shown in SHOWN.items() if row}
    assert {row: what for row, what in lacking.items() if what} == {}
