"""Addresses behind blocked names: learnt, spared where others live, freed, kept across restarts. Real packets, real dig."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.agent import Agent, running
from tools.rig import LAN4, LAN6, UPSTREAM4, UPSTREAM6, Rig, until

pytestmark = pytest.mark.root

GATEWAY = f"{LAN4}.1"
APPS = {
    "alipay": {"payment": ["alipay.example", "203.0.113.200/29"]},
    "bypass": {"canary": ["use-application-dns.net"]},
}
RECORDS = (
    "host-record=www.alipay.example,203.0.113.30,2001:db8:3::30", "host-record=neighbour.test,203.0.113.31,2001:db8:3::31",
    "host-record=shared.alipay.example,203.0.113.31,2001:db8:3::31",
    "host-record=late.alipay.example,203.0.113.32", "host-record=late.test,203.0.113.32",
    "host-record=flow.alipay.example,203.0.113.33", "host-record=other.test,203.0.113.34",
    f"host-record=ours.alipay.example,{UPSTREAM4},{UPSTREAM6}", f"host-record=lan.alipay.example,{LAN4}.200,{LAN6}:200",
    "host-record=loop.alipay.example,127.0.0.1", "host-record=listed.alipay.example,203.0.113.201",
    "cname=cloaked.test,edge.alipay.example", "host-record=edge.alipay.example,203.0.113.35",
    "host-record=kept.alipay.example,203.0.113.36", "host-record=dropped.alipay.example,203.0.113.37",
    "host-record=again.alipay.example,203.0.113.38", "host-record=use-application-dns.net,203.0.113.39",
    "host-record=early.alipay.example,203.0.113.40", "host-record=early.test,203.0.113.40",
)  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    "dns": {"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
    "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "log_group": 8300},
}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.serve_dns(*RECORDS)
        made.serve_web()
        # the gateway knows the client's hardware address for both families before the agent reads its neighbours, which it
        # does every ten seconds
        for address in (f"{LAN4}.10", f"{LAN6}:10"):
            assert made.reach("gateway", address) == "refused"
        yield made


def remember(root: Path) -> None:
    """As after a stop a moment ago: nothing was answered, and nothing is unknown."""
    (root / "state").mkdir(parents=True)
    (root / "state/learnt.jsonl").write_text(json.dumps({"version": 1, "saved": time.time()}) + "\n")


@pytest.fixture(scope="module")
def agent(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    root = tmp_path_factory.mktemp("learning")
    remember(root)
    for last in (*range(30, 38), 39):
        assert rig.reach("client", f"203.0.113.{last}") == "open", "before the agent runs"
    with running(root, prefix=rig.prefix("gateway"), apps=APPS, **SECTIONS) as started:
        started.port = 53
        yield started


def ask(rig: Rig, name: str, qtype: str = "A") -> str:
    return rig.dig("client", f"@{GATEWAY}", name, qtype).rcode


def why_spared(agent: Agent, address: str) -> Any:
    return agent.answer("why", address, status=1).get("spared")


def is_blocked(rig: Rig, address: str) -> bool:
    return rig.reach("client", address, seconds=0.5) == "refused"


def test_the_addresses_behind_a_blocked_name_are_blocked(rig: Rig, agent: Agent) -> None:
    assert ask(rig, "www.alipay.example") == "NXDOMAIN"
    for address in ("203.0.113.30", "2001:db8:3::30"):
        until(partial(is_blocked, rig, address), f"{address} is blocked")
        assert rig.reach("client", address, udp=True, seconds=0.5) in ("refused", "unreachable", "silent")
    assert rig.reach("client", "203.0.113.29") == "open"
    report = agent.answer("why", "203.0.113.30")
    assert (report["verdict"], report["learnt"], report["list"], report["line"]) == (
        "blocked", "www.alipay.example", "alipay/payment.list", 1,
    )  # fmt: skip
    assert "learnt: www.alipay.example resolved to it" in agent.cli("why", "203.0.113.30").stdout
    expected = {
        "client": f"{LAN4}.10", "dst": "203.0.113.30", "app": "alipay", "function": "payment", "names": ["www.alipay.example"],
        "list": "alipay/payment.list", "line": 1, "rule": "alipay.example", "learnt": True, "action": "reject",
    }  # fmt: skip
    until(lambda: any(expected.items() <= event.items() for event in agent.events("drop")), "the drop is logged")
    assert "learnt     " in agent.cli("status").stdout


def test_an_alias_that_leads_to_a_blocked_name_leads_to_its_address(rig: Rig, agent: Agent) -> None:
    assert ask(rig, "cloaked.test") == "NXDOMAIN"
    until(lambda: is_blocked(rig, "203.0.113.35"), "the address at the end is blocked")
    assert agent.answer("why", "203.0.113.35")["learnt"] == "edge.alipay.example", "not the name that anybody may lead there"


def test_an_address_where_an_unblocked_name_lives_is_spared(rig: Rig, agent: Agent) -> None:
    for qtype in ("A", "AAAA"):
        assert ask(rig, "neighbour.test", qtype) == "NOERROR"
    assert ask(rig, "shared.alipay.example") == "NXDOMAIN"
    for address in ("203.0.113.31", "2001:db8:3::31"):
        assert until(partial(why_spared, agent, address), "why tells of both") == {
            "address": address,
            "name": "shared.alipay.example",
            "neighbour": "neighbour.test",
        }
        assert rig.reach("client", address) == "open"
    assert "not blocked: shared.alipay.example, which is blocked, and neighbour.test, which is not, both resolve to it" in (
        agent.cli("why", "203.0.113.31", status=1).stdout
    )
    learning = agent.answer("status")["firewall"]["learning"]
    assert "freed" not in learning["counters"], "it was not blocked for a moment either"
    spared = learning["spared"]
    assert {"address": "203.0.113.31", "name": "shared.alipay.example", "neighbour": "neighbour.test"} in spared
    assert "addresses behind blocked names that other names use too" in " ".join(agent.answer("status")["uncovered"])


def test_an_address_is_free_before_an_unblocked_name_is_answered_with_it(rig: Rig, agent: Agent) -> None:
    ask(rig, "late.alipay.example")
    until(lambda: is_blocked(rig, "203.0.113.32"), "it is blocked")
    assert ask(rig, "late.test") == "NOERROR"
    assert rig.reach("client", "203.0.113.32") == "open", "at once"
    assert agent.answer("why", "203.0.113.32", status=1)["spared"]["neighbour"] == "late.test"
    assert agent.answer("status")["firewall"]["learning"]["counters"]["freed"] == 1


def test_an_open_flow_ends_when_its_address_is_learnt(rig: Rig, agent: Agent) -> None:
    with rig.socket("client", socket.SOCK_STREAM, GATEWAY) as flow, rig.socket("client", socket.SOCK_STREAM, GATEWAY) as other:
        for sock, address in ((flow, "203.0.113.33"), (other, "203.0.113.34")):
            sock.settimeout(5)
            sock.connect((address, 443))
            sock.sendall(b"before")
            assert sock.recv(64) == b"before"
        ask(rig, "flow.alipay.example")
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):  # noqa: PT012  # some packet of them
            while time.monotonic() < began + 5:
                flow.sendall(b"after")
                assert flow.recv(64)
                time.sleep(0.01)
        other.sendall(b"after")
        assert other.recv(64) == b"after", "another flow goes on"
    assert agent.answer("status")["firewall"]["learning"]["addresses"] > 0


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("ours", [UPSTREAM4, UPSTREAM6]),
        ("lan", [f"{LAN4}.200", f"{LAN6}:200"]),
        ("loop", ["127.0.0.1"]),
        ("listed", ["203.0.113.201"]),
    ],
)
def test_some_addresses_are_never_learnt(rig: Rig, agent: Agent, name: str, addresses: list[str]) -> None:
    def guarded() -> int:
        return int(agent.answer("status")["firewall"]["learning"]["counters"].get("guarded", 0))

    before = guarded()
    ask(rig, f"{name}.alipay.example")
    until(lambda: guarded() >= before + len(addresses), "each was answered, and guarded")
    for address in addresses:
        assert "learnt" not in agent.answer("why", address, status=None)


@pytest.mark.usefixtures("agent")
def test_what_exists_to_be_asked_for_is_not_learnt(rig: Rig) -> None:
    ask(rig, "use-application-dns.net")
    time.sleep(1.0)
    assert rig.reach("client", "203.0.113.39") == "open"


def test_what_is_not_blocked_any_more_is_free_again(rig: Rig, agent: Agent) -> None:
    ask(rig, "dropped.alipay.example")
    ask(rig, "www.alipay.example")
    until(lambda: is_blocked(rig, "203.0.113.37") and is_blocked(rig, "203.0.113.30"), "both are blocked")
    agent.cli("allow", "dropped.alipay.example")
    assert rig.reach("client", "203.0.113.37") == "open"
    assert is_blocked(rig, "203.0.113.30"), "another one stays"
    agent.cli("forget", "dropped.alipay.example")


def test_a_name_that_becomes_blocked_is_no_reason_to_spare_its_address(rig: Rig, agent: Agent) -> None:
    assert ask(rig, "early.test") == "NOERROR"
    time.sleep(0.3)
    agent.cli("block", "early.test")
    try:
        assert ask(rig, "early.test") == "NXDOMAIN"
        until(lambda: is_blocked(rig, "203.0.113.40"), "its address is learnt")
    finally:
        agent.cli("forget", "early.test")
    assert rig.reach("client", "203.0.113.40") == "open"


def test_what_was_learnt_outlives_a_guardian_that_is_killed(rig: Rig, agent: Agent) -> None:
    ask(rig, "again.alipay.example")
    until(lambda: is_blocked(rig, "203.0.113.38"), "it is blocked")
    guardian = agent.answer("status")["firewall"]["guardian"]
    os.kill(guardian, signal.SIGKILL)
    until(
        lambda: (
            agent.answer("status")["firewall"]["guardian"] not in (0, guardian)
            and agent.answer("status")["firewall"].get("learning", {}).get("addresses")
        ),
        "another guardian remembers",
    )
    assert is_blocked(rig, "203.0.113.38")
    assert agent.answer("why", "203.0.113.38")["learnt"] == "again.alipay.example"
    ask(rig, "kept.alipay.example")
    until(lambda: is_blocked(rig, "203.0.113.36"), "and it learns")


def test_what_was_learnt_outlives_a_restart(rig: Rig, tmp_path: Path) -> None:
    remember(tmp_path)
    sections = {**SECTIONS, "firewall": {**SECTIONS["firewall"], "on_stop": "remove", "log_group": 8301}}
    sections["dns"] = {**SECTIONS["dns"], "listen": ["127.0.0.1:5300"]}
    sections["firewall"] |= {"lan": [], "enabled": True}
    with Rig() as own:
        own.serve_dns(*RECORDS)
        own.serve_web()
        with running(tmp_path, prefix=own.prefix("gateway"), apps=APPS, **sections) as first:
            own.dig("gateway", "@127.0.0.1", "-p", "5300", "kept.alipay.example")
            own.dig("gateway", "@127.0.0.1", "-p", "5300", "other.test")
            until(lambda: is_blocked(own, "203.0.113.36"), "it is blocked")
            time.sleep(0.3)
            assert not first.ended()
        assert own.reach("client", "203.0.113.36") == "open", "the rules went with the agent"
        with running(tmp_path, prefix=own.prefix("gateway"), apps=APPS, **sections) as second:
            assert is_blocked(own, "203.0.113.36")
            assert second.answer("why", "203.0.113.34", status=1)["names"] == ["other.test"]


def test_without_a_memory_addresses_are_noted_and_not_blocked(rig: Rig, tmp_path: Path) -> None:
    sections = {"dns": {**SECTIONS["dns"], "listen": ["127.0.0.1:5300"]}}
    sections["firewall"] = {"enabled": True, "lan": [], "on_stop": "remove", "log_group": 8302}
    with Rig() as own:
        own.serve_dns(*RECORDS)
        own.serve_web()
        with running(tmp_path, prefix=own.prefix("gateway"), apps=APPS, **sections) as first:
            own.dig("gateway", "@127.0.0.1", "-p", "5300", "early.alipay.example")
            until(lambda: first.answer("status")["firewall"]["learning"]["counters"].get("noted"), "it is noted")
            assert own.reach("client", "203.0.113.40") == "open"
            assert 0 < first.answer("status")["firewall"]["learning"]["proving"] <= 600
            assert "until then they are only recorded" in " ".join(first.answer("status")["uncovered"])


def test_a_drop_that_no_name_led_to_says_so(rig: Rig, agent: Agent) -> None:
    rig.reach("client", "203.0.113.205")
    until(
        lambda: any(e["dst"] == "203.0.113.205" and e.get("direct") is True and e["names"] == [] for e in agent.events("drop")),
        "it is direct",
    )


def test_a_client_is_named_as_the_hosts_file_names_it_by_any_address(rig: Rig, agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(f"{LAN4}.10 telephone.home\n")
    agent.write_config(dns={"hosts": [str(tmp_path / "hosts")]})
    agent.cli("reload")
    try:
        rig.reach("client", "203.0.113.206")
        expected = {"dst": "203.0.113.206", "client": f"{LAN4}.10", "client_name": "telephone.home"}
        until(lambda: any(expected.items() <= e.items() for e in agent.events("drop")), "the client has a name")
        ask(rig, "www.alipay.example")
        until(lambda: is_blocked(rig, "2001:db8:3::30"), "it is blocked")
        rig.reach("client", "2001:db8:3::30", 8080)
        second: dict[str, object] = {
            "dst": "2001:db8:3::30",
            "dport": 8080,
            "client": f"{LAN6}:10",
            "client_name": "telephone.home",
        }
        until(lambda: any(second.items() <= e.items() for e in agent.events("drop")), "by its hardware address", 15.0)
    finally:
        agent.write_config(dns={"hosts": []})
        agent.cli("reload")


def test_the_log_tells_of_as_many_packets_as_the_kernel_counts(rig: Rig, tmp_path: Path) -> None:
    """More than the kernel gives records of."""
    sections = {"dns": {**SECTIONS["dns"], "listen": ["127.0.0.1:5300"]}}
    sections["firewall"] = {"enabled": True, "lan": [], "on_stop": "keep", "log_group": 8303, "protect": False}
    flood = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(20000):
    try:
        sock.sendto(b"x", (f"203.0.113.{200 + n % 8}", 1000 + n % 500))
    except OSError:
        pass  # the gateway's refusal of an earlier one
"""
    with Rig() as own:
        own.serve_dns(*RECORDS)
        with running(tmp_path, prefix=own.prefix("gateway"), apps=APPS, **sections) as first:
            own.run("client", sys.executable, "-c", flood)
            until(lambda: first.events("drop"), "the first ones are logged")
        events = first.events("drop")
        counter = own.run("gateway", "nft", "list", "counter", "inet", "embargo", "alipay_payment").stdout
        counted = int(counter.split("packets ")[1].split()[0])
    assert counted > 15_000
    assert sum(event["count"] for event in events) == counted
    unlogged = [event for event in events if event.get("unlogged")]
    assert unlogged
    assert sum(e["count"] for e in events if not e.get("unlogged")) >= 1000, "the rate that the kernel gives records at"
