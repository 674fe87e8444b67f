"""Beside firewalld, ufw and Docker's rules: real packages of Debian, in a box of their own, on the gateway of a rig."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent, running
from support.box import Box, Firewalld
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, UPSTREAM4, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
APPS = {"alipay": {"payment": ["alipay.example", "203.0.113.200/29", "2001:db8:99::/48"]}}
CONTAINER, BRIDGE = "172.17.0.2", "172.17.0.1"


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with Box("firewalld", "ufw", "iptables") as made:
        yield made


@contextlib.contextmanager
def network() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:99::/48")
        made.serve_dns()
        made.serve_web()
        for address in (LISTED4, LISTED6):
            assert made.reach("client", address) == "open", "before anybody runs"
        yield made


def agent(rig: Rig, root: Path, *lan: str, **firewall: Any) -> contextlib.AbstractContextManager[Agent]:
    sections = {
        "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0", *lan], "on_stop": "remove", "log_group": 8500, **firewall},
    }
    return running(root, prefix=rig.prefix("gateway"), apps=APPS, **sections)


def holds(rig: Rig) -> None:
    """What is listed is refused, what is not passes, and port 53 is ours, for both families."""
    for address in (LISTED4, LISTED6):
        assert rig.reach("client", address) == "refused"
    for address in (WEB4, WEB6):
        assert rig.reach("client", address) == "open"
    for server in (OTHER4, OTHER6, f"{LAN4}.1", f"{LAN6}:1"):
        assert rig.dig("client", f"@{server}", "www.alipay.example").rcode == "NXDOMAIN"
        assert rig.dig("client", f"@{server}", "free.example").rcode == "NOERROR"


def untouched(started: Agent) -> None:
    """Nothing had to be restored, and the rules are ours."""
    report = started.answer("status")["firewall"]
    assert (report["present"], report["restored"]) == (True, 0)
    assert started.events("firewall") == []


@pytest.mark.parametrize("protect", [True, False], ids=["owned", "open"])
def test_firewalld_is_started_reloaded_and_stopped_beside_us(box: Box, tmp_path: Path, protect: bool) -> None:
    with network() as rig:
        firewalld = Firewalld(box, rig)
        with agent(rig, tmp_path, protect=protect) as started:
            firewalld.start()
            holds(rig)
            for word in ("--reload", "--complete-reload"):
                firewalld.command(word)
                holds(rig)
            firewalld.stop()
            holds(rig)
            untouched(started)


def test_we_are_started_and_stopped_beside_firewalld(box: Box, tmp_path: Path) -> None:
    with network() as rig:
        firewalld = Firewalld(box, rig)
        firewalld.start()
        before = rig.run("gateway", "nft", "list", "table", "inet", "firewalld").stdout
        with agent(rig, tmp_path) as started:
            holds(rig)
            started.cli("reload")
            holds(rig)
        assert rig.reach("client", LISTED4) == "open"
        assert rig.run("gateway", "nft", "list", "table", "inet", "firewalld").stdout == before, "we leave no trace in it"
        firewalld.stop()


@pytest.mark.parametrize("protect", [True, False], ids=["owned", "open"])
def test_ufw_is_enabled_reloaded_disabled_and_reset_beside_us(box: Box, tmp_path: Path, protect: bool) -> None:
    with network() as rig, agent(rig, tmp_path, protect=protect) as started:
        box.run(rig, "ufw", "default", "allow", "routed")
        box.run(rig, "ufw", "allow", "in", "on", "lan0")
        for words in (("--force", "enable"), ("reload",), ("disable",), ("--force", "enable"), ("--force", "reset")):
            box.run(rig, "ufw", *words)
            holds(rig)
        untouched(started)


DOCKER = f"""*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d {CONTAINER}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER -i docker0 -o docker0 -j ACCEPT
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-USER -i lan0 -o wan0 -j ACCEPT
-A DOCKER-USER -i wan0 -o lan0 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {CONTAINER}:80
COMMIT
"""

_SERVE = """
import socket
sock = socket.create_server(("0.0.0.0", 80))
while True:
    with sock.accept()[0] as client:
        client.sendall(client.recv(64))
"""
_REACH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 2) as sock:
        sock.sendall(b"hello")
        print("open" if sock.recv(64) else "silent")
except TimeoutError:
    print("silent")
except ConnectionRefusedError:
    print("refused")
"""


class Container:
    """A network namespace behind a bridge of the gateway, as Docker makes them."""

    def __init__(self, rig: Rig) -> None:
        self._process = rig.start("gateway", "unshare", "--net", "sleep", "600")
        until(lambda: b"sleep" in Path(f"/proc/{self._process.pid}/cmdline").read_bytes()[:6], "it is there")
        for command in (
            "link add docker0 type bridge", f"address add {BRIDGE}/16 dev docker0", "link set docker0 up",
            "link add veth0 type veth peer name inner", "link set veth0 master docker0", "link set veth0 up",
            f"link set inner netns {self._process.pid}",
        ):  # fmt: skip
            rig.run("gateway", "ip", *command.split())
        for command in ("link set lo up", f"address add {CONTAINER}/16 dev inner", "link set inner up"):
            self.run("ip", *command.split())
        self.run("ip", "route", "add", "default", "via", BRIDGE)
        self._server = subprocess.Popen([*self._prefix, sys.executable, "-c", _SERVE])

    @property
    def _prefix(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net"]

    def run(self, *command: str) -> str:
        return subprocess.run([*self._prefix, *command], check=True, capture_output=True, text=True, timeout=30).stdout

    def reach(self, address: str, port: int = 443) -> str:
        return self.run(sys.executable, "-c", _REACH, address, str(port)).strip()

    def asks(self, server: str, name: str) -> str:
        return self.run("dig", "+tries=1", "+time=3", f"@{server}", name)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


@pytest.mark.parametrize("protect", [True, False], ids=["owned", "open"])
def test_containers_behind_dockers_rules_are_filtered_and_served(box: Box, tmp_path: Path, protect: bool) -> None:
    with network() as rig:
        rig.run("internet", "ip", "route", "add", "172.17.0.0/16", "via", "198.51.100.1")
        container = Container(rig)
        try:
            box.run(rig, "iptables-restore", text=DOCKER)
            assert container.reach(LISTED4) == "open", "without the agent"
            with agent(rig, tmp_path, "docker0", protect=protect) as started:
                box.run(rig, "iptables-restore", text=DOCKER)  # dockerd is started again
                holds(rig)
                assert container.reach(LISTED4) == "refused"
                assert container.reach(WEB4) == "open"
                assert "NXDOMAIN" in container.asks(OTHER4, "www.alipay.example")
                assert "NOERROR" in container.asks(OTHER4, "free.example")
                assert rig.reach("internet", "198.51.100.1", 8080) == "open", "its published port is reached"
                expected = {"dst": LISTED4, "client": CONTAINER, "app": "alipay"}
                until(lambda: any(expected.items() <= e.items() for e in started.events("drop")), "the log names the container")
                box.run(rig, "iptables", "-F", "FORWARD")
                box.run(rig, "iptables", "-P", "FORWARD", "ACCEPT")
                holds(rig)
                untouched(started)
        finally:
            container.close()


def test_whoever_flushes_everything_does_not_open_the_gate_for_long(box: Box, tmp_path: Path) -> None:
    """As files for `nft -f` that begin with `flush ruleset` do, on a kernel that cannot protect our table."""
    del box
    with network() as rig, agent(rig, tmp_path, protect=False) as started:
        began = time.monotonic()
        rig.run("gateway", "nft", "flush", "ruleset")
        until(lambda: rig.reach("client", LISTED4, seconds=0.3) == "refused", "the rules are back", 3.0)
        taken = time.monotonic() - began
        holds(rig)
        assert started.answer("status")["firewall"]["restored"] == 1
        assert taken < 3.0
