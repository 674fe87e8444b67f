"""Pauses at the address layer: which clients they let through, by which rules, and what becomes of flows when they end."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import Agent, running
from tools.rig import LAN4, LAN6, OTHER4, UPSTREAM4, WEB4, Rig, until

pytestmark = pytest.mark.root

GATEWAY = f"{LAN4}.1"
ONE4, OTHER_CLIENT4 = f"{LAN4}.10", f"{LAN4}.11"
ALIPAY4, ALIPAY6, QQ4 = "203.0.113.200", "2001:db8:99::7", "203.0.113.77"
MAPPED = "64:ff9b::203.0.113.200"
APPS = {
    "alipay": {"payment": ["alipay.example", "203.0.113.200/29", "2001:db8:99::/48"]},
    "qq": {"payment": ["qq.example", QQ4]},
    "bypass": {"doh": ["dns.test", "203.0.113.99"]},
}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:99::/48", "64:ff9b::/96")
        made.serve_dns("host-record=learnt.alipay.example,203.0.113.30,300")
        made.serve_web()
        yield made


@pytest.fixture(scope="module")
def agent(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    root = tmp_path_factory.mktemp("pause")
    remember(root)
    sections = {
        "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8310},
    }
    with running(root, prefix=rig.prefix("gateway"), apps=APPS, **sections) as started:
        started.port = 53
        yield started


def remember(root: Path) -> None:
    """As after a stop a moment ago: addresses are learnt from the start."""
    (root / "state").mkdir(parents=True)
    (root / "state/learnt.jsonl").write_text(json.dumps({"version": 1, "saved": time.time()}) + "\n")


@pytest.fixture(autouse=True)
def afterwards(agent: Agent) -> Iterator[None]:
    yield
    agent.cli("resume", status=None)


def reach(rig: Rig, address: str, client: str = "", port: int = 443) -> str:
    with rig.socket("client", socket.SOCK_STREAM, address) as sock:
        sock.settimeout(2)
        if client:
            sock.bind((client, 0))
        try:
            sock.connect((address, port))
            sock.sendall(b"hello")
            return "open" if sock.recv(64) else "closed"
        except (ConnectionRefusedError, ConnectionResetError):
            return "refused"


def test_a_paused_app_is_reached_and_the_others_are_not(rig: Rig, agent: Agent) -> None:
    for address in (ALIPAY4, ALIPAY6, MAPPED, QQ4):
        assert reach(rig, address) == "refused"
    agent.cli("pause", "alipay", "1h")
    for address in (ALIPAY4, ALIPAY6, MAPPED):
        assert reach(rig, address) == "open"
    assert reach(rig, QQ4) == "refused"
    assert rig.dig("client", f"@{GATEWAY}", "www.alipay.example").answers == (f"A {WEB4}",)
    agent.cli("resume")
    for address in (ALIPAY4, ALIPAY6, MAPPED):
        assert reach(rig, address) == "refused"


def test_an_app_that_is_paused_for_a_client_is_reached_by_that_client_alone(rig: Rig, agent: Agent) -> None:
    agent.cli("pause", "alipay", "1h", "--client", OTHER_CLIENT4)
    assert reach(rig, ALIPAY4, OTHER_CLIENT4) == "open"
    assert reach(rig, ALIPAY4, ONE4) == "refused"
    assert reach(rig, QQ4, OTHER_CLIENT4) == "refused"
    assert reach(rig, "203.0.113.99", OTHER_CLIENT4) == "refused"
    assert reach(rig, ALIPAY6) == "refused"
    assert rig.dig("client", "-b", OTHER_CLIENT4, f"@{OTHER4}", "www.alipay.example").answers == (f"A {WEB4}",)
    assert rig.dig("client", "-b", ONE4, f"@{OTHER4}", "www.alipay.example").rcode == "NXDOMAIN"
    agent.cli("pause", "alipay", "1h", "--client", f"{LAN6}:/64")
    for address in (ALIPAY6, MAPPED):
        assert reach(rig, address) == "open"
    assert "exempt_0" in rig.run("gateway", "nft", "list", "table", "inet", "embargo").stdout


def test_everything_that_is_paused_for_a_client(rig: Rig, agent: Agent) -> None:
    agent.cli("pause", "1h", "--client", OTHER_CLIENT4)
    for address, port in ((ALIPAY4, 443), (QQ4, 443), ("203.0.113.99", 443), (WEB4, 853)):
        assert reach(rig, address, OTHER_CLIENT4, port) == "open"
        assert reach(rig, address, ONE4, port) == "refused"
    assert rig.dig("client", "-b", OTHER_CLIENT4, f"@{GATEWAY}", "www.qq.example").answers == (f"A {WEB4}",)
    assert rig.dig("client", "-b", ONE4, f"@{GATEWAY}", "www.qq.example").rcode == "NXDOMAIN"


def test_a_learnt_address_is_let_through_too(rig: Rig, agent: Agent) -> None:
    name, address = "learnt.alipay.example", "203.0.113.30"
    rig.dig("client", f"@{GATEWAY}", name)
    until(lambda: reach(rig, address) == "refused", "the address is learnt")
    agent.cli("pause", "alipay", "1h", "--client", OTHER_CLIENT4)
    assert rig.dig("client", "-b", OTHER_CLIENT4, f"@{GATEWAY}", name).answers == (f"A {address}",)
    assert reach(rig, address, OTHER_CLIENT4) == "open"
    assert reach(rig, address, ONE4) == "refused"
    agent.cli("resume")
    agent.cli("pause", "alipay", "1h")
    assert reach(rig, address, ONE4) == "open"
    assert rig.dig("client", f"@{GATEWAY}", name).answers == (f"A {address}",)
    agent.cli("resume")  # whoever was given the address meanwhile still has it, and nobody asks for the name again
    until(lambda: reach(rig, address, ONE4) == "refused", "what was answered during the pause is learnt")


def test_an_open_flow_outlasts_changes_of_others_and_ends_with_the_pause(rig: Rig, agent: Agent) -> None:
    agent.cli("pause", "alipay", "--client", OTHER_CLIENT4, "1h")
    with rig.socket("client", socket.SOCK_STREAM, ALIPAY4) as flow:
        flow.settimeout(5)
        flow.bind((OTHER_CLIENT4, 0))
        flow.connect((ALIPAY4, 443))
        for step in (lambda: None, lambda: agent.cli("block", "other.test"), lambda: agent.cli("pause", "qq", "1h")):
            step()
            flow.sendall(b"hello")
            assert flow.recv(64) == b"hello"
        agent.cli("resume")
        with pytest.raises(ConnectionResetError):
            talk(flow)
    agent.cli("forget", "other.test")


def talk(flow: socket.socket) -> None:
    for _ in range(50):
        flow.sendall(b"after")
        assert flow.recv(64), "it ended without a reset"


def test_verify_tries_nothing_that_is_paused_and_says_so(rig: Rig, agent: Agent) -> None:
    agent.cli("pause", "alipay", "1h")
    report = agent.answer("verify")
    assert report["ok"] is True
    assert {row["app"] for row in report["rows"] if row["probes"]} & {"alipay", "qq"} == {"qq"}
    assert "paused, so not tried: alipay" in report["notes"]
    assert rig.reach("client", ALIPAY4) == "open"
