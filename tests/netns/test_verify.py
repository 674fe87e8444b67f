"""`embargo verify` on a gateway: what it proves, what it finds, and that it leaves nothing behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import embargo
from support.agent import Agent, running
from tools.rig import LAN4, UPSTREAM4, Rig, until

pytestmark = pytest.mark.root

APPS = {
    "alipay": {
        "payment": ["alipay.example", "!mail.alipay.example", "203.0.113.200/29", "203.0.113.7", "2001:db8:99::/48"],
        "telemetry": ["=log.test", "203.0.113.77"],
        "httpdns": ["httpdns.test", "203.0.113.98", "2001:db8:98::1"],
    },
    "bypass": {"canary": ["use-application-dns.net"], "relay": ["mask.icloud.com"], "doh": ["dns.test", "203.0.113.99"]},
}
PACKETS = ("IPv4 addresses", "IPv6 addresses", "ports")  # kinds of rows that prove nothing while a control fails
#: everything about the machine that a run could leave something in
STATE = (
    "ip -o link", "ip -o address", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
    "ip neighbour show nud permanent", "ip -6 neighbour show nud permanent", "ip netns list-id", "nft list tables",
)  # fmt: skip
OTHER_RESOLVER = f"""
add table inet other
add chain inet other nat {{ type nat hook prerouting priority -150; }}
add rule inet other nat iifname embargo-verify ip daddr {LAN4}.1 udp dport 53 redirect to :5300
"""
OTHER_FIREWALL = """
add table inet other
add chain inet other forward { type filter hook forward priority 0; policy drop; }
"""
MASQUERADE = """
add table inet other
add chain inet other nat { type nat hook postrouting priority 100; }
add rule inet other nat masquerade
add chain inet other forward { type filter hook forward priority 0; policy drop; }
add rule inet other forward ct state established,related accept
add rule inet other forward iifname embargo-verify oifname embargo-sink accept
"""
COUNTERS = """
add table inet count
add chain inet count post { type filter hook postrouting priority 0; }
add rule inet count post icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } accept
add rule inet count post oifname { wan0, lan0 } counter
"""  # the kernel asks and tells its neighbours whenever it likes


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.serve_dns("local=/test/")
        yield made


@pytest.fixture(scope="module")
def agent(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    sections = {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove", "protect": False, "learn": False},
    }
    with running(tmp_path_factory.mktemp("verify"), prefix=rig.prefix("gateway"), apps=APPS, **sections) as started:
        yield started


def state(rig: Rig) -> dict[str, str]:
    """Without what changes by itself."""
    report = {command: rig.run("gateway", *command.split()).stdout for command in STATE}
    return {command: re.sub(r" expires \d+sec| users \d+| age \d+", "", text) for command, text in report.items()}


def rows(report: Any, **members: object) -> list[Any]:
    found = [row for row in report["rows"] if all(row[key] == value for key, value in members.items())]
    assert found, members
    return found


@contextlib.contextmanager
def asleep(agent: Agent) -> Iterator[None]:
    """The guardian cannot mend what is broken meanwhile."""
    guardian = agent.answer("status")["firewall"]["guardian"]
    os.kill(guardian, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(guardian, signal.SIGCONT)


@contextlib.contextmanager
def configured(agent: Agent, **sections: dict[str, Any]) -> Iterator[None]:
    """Other settings for a while."""
    before = {name: {key: agent.sections.get(name, {}).get(key) for key in keys} for name, keys in sections.items()}
    agent.write_config(**sections)
    agent.cli("reload")
    try:
        yield
    finally:
        for name, keys in before.items():
            for key, value in keys.items():
                agent.sections[name].pop(key)
                if value is not None:
                    agent.sections[name][key] = value
        agent.write_config()
        agent.cli("reload")


# ── what it proves ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_held(agent: Agent) -> None:
    report = agent.answer("verify")
    assert (report["ok"], report["leaks"], report["unproven"], report["notes"]) == (True, 0, 0, [])
    assert report["probes"] == report["held"] == sum(row["probes"] for row in report["rows"])
    assert {row["verdict"] for row in report["rows"]} == {"held"}
    for row in report["rows"]:
        assert set(row) == {"app", "function", "kind", "verdict", "probes", "held", "leaks", "unproven", "detail"}
    seen = {(row["app"], row["function"], row["kind"]) for row in report["rows"]}
    assert seen >= {
        ("alipay", "payment", "names"), ("alipay", "payment", "IPv4 addresses"), ("alipay", "payment", "IPv6 addresses"),
        ("alipay", "telemetry", "names"), ("alipay", "httpdns", "names"), ("alipay", "httpdns", "IPv6 addresses"),
        ("bypass", "canary", "names"), ("bypass", "relay", "names"), ("bypass", "doh", "names"),
        ("bypass", "doh", "IPv4 addresses"), ("bypass", "dot", "ports"), ("bypass", "doq", "ports"),
        ("bypass", "ddr", "discovery of encrypted resolvers"),
        ("bypass", "resolver", "port 53 to other resolvers"), ("bypass", "packets", "IPv4 fragments"),
        ("bypass", "packets", "IPv4 options"), ("bypass", "packets", "IPv6 fragments"),
        ("bypass", "packets", "IPv6 extension headers"), ("bypass", "packets", "IPv4 inside 64:ff9b::/96"),
        ("bypass", "packets", "IPv4 inside ::ffff:0:0/96"), ("bypass", "packets", "IPv4 inside 2002::/16"),
    }  # fmt: skip


def test_the_numbers_are_those_of_the_lists(agent: Agent) -> None:
    """Two names (itself and one below) by 8 ways and 5 questions; first, middle and last of each network by 3 protocols."""
    report = agent.answer("verify", "--all")
    assert rows(report, app="alipay", function="payment", kind="names")[0]["probes"] == 2 * 8 * 5
    assert rows(report, app="alipay", function="telemetry", kind="names")[0]["probes"] == 1 * 8 * 5
    assert rows(report, app="alipay", function="payment", kind="IPv4 addresses")[0]["probes"] == (1 + 3) * 3
    assert rows(report, app="alipay", function="payment", kind="IPv6 addresses")[0]["probes"] == 3 * 3
    assert rows(report, app="bypass", function="doq")[0]["probes"] == 2 * 3
    sample = agent.answer("verify", "--samples", "1")
    assert rows(sample, app="alipay", function="payment", kind="names")[0]["probes"] == 1 * 8 * 5


def test_people_read_a_table(agent: Agent) -> None:
    shown = agent.cli("verify", "--samples", "1").stdout
    assert re.search(r"^alipay +payment +names +40 +40 +0 +held$", shown, re.MULTILINE)
    last = r"^generation \d+, \d+ probes \(a sample, seed 0\) in [\d.]+ s: \d+ held, 0 unproven, \d+ kinds? skipped, no leaks$"
    assert re.search(last, shown, re.MULTILINE)


@pytest.mark.parametrize("mode", ["nodata", "null", "refused", ["192.0.2.99", "2001:db8::99"]])
def test_every_block_mode_is_a_block(agent: Agent, mode: object) -> None:
    with configured(agent, dns={"block_mode": mode}):
        assert agent.answer("verify")["unproven"] == 0


def test_port_53_is_intercepted_also_with_fail_open(agent: Agent) -> None:
    with configured(agent, firewall={"fail": "open"}):
        for _ in range(3):  # also when the first word that somebody answers has had its time
            assert {row["verdict"] for row in rows(agent.answer("verify"), function="resolver")} == {"held"}
            time.sleep(1)


def test_the_attempts_are_in_the_block_log(agent: Agent) -> None:
    agent.cli("verify")
    client = next(event["client"] for event in agent.events("dns") if event["client"].startswith("169.254."))
    until(lambda: any(e["client"] == client and e["dst"] == "203.0.113.7" for e in agent.events("drop")), "the drop is logged")


# ── what it finds ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_element_that_is_gone_is_a_leak(rig: Rig, agent: Agent) -> None:
    name = re.search(r"map (address4_\d+)", rig.run("gateway", "nft", "list table inet embargo").stdout)
    assert name
    element = f"inet embargo {name[1]} {{ 203.0.113.77 : jump alipay_telemetry }}"
    with asleep(agent):
        rig.run("gateway", "nft", f"delete element {element}")
        try:
            report = agent.answer("verify", status=1)
        finally:
            rig.run("gateway", "nft", f"add element {element}")
    assert not report["ok"]
    leaking = rows(report, verdict="LEAK")
    assert {row["app"] for row in leaking} == {"alipay", "bypass"}  # the latter: the same address by other kinds of packets
    assert all(re.search("203.0.113.77|cb00:714d", row["detail"]) for row in leaking)
    row = rows(report, app="alipay", verdict="LEAK")[0]
    assert (row["function"], row["kind"], row["probes"], row["leaks"]) == ("telemetry", "IPv4 addresses", 3, 3)
    assert row["detail"].startswith("tcp 203.0.113.77:443 reached the sink; udp 203.0.113.77:443 reached the sink; icmp ")
    assert {row["verdict"] for row in rows(report, app="alipay", function="payment")} == {"held"}


def test_a_forward_chain_that_is_flushed_leaks_by_address_and_not_by_name(rig: Rig, agent: Agent) -> None:
    with asleep(agent):
        rig.run("gateway", "nft", "flush chain inet embargo forward")
        report = agent.answer("verify", status=1)
    for kind in PACKETS:
        for row in rows(report, kind=kind):
            assert (row["verdict"], row["leaks"]) == ("LEAK", row["probes"])
    assert {row["verdict"] for row in rows(report, kind="names")} == {"held"}
    assert {row["verdict"] for row in rows(report, function="packets")} == {"LEAK"}
    until(lambda: agent.answer("verify")["ok"], "the guardian has mended it")


def test_a_redirect_that_is_flushed_lets_nothing_out_but_is_not_held(rig: Rig, agent: Agent) -> None:
    """The forward chain still refuses port 53: nobody answers, and nothing passes."""
    with asleep(agent):
        rig.run("gateway", "nft", "flush chain inet embargo prerouting")
        report = agent.answer("verify")
    assert {row["verdict"] for row in rows(report, function="resolver")} == {"unproven"}
    assert report["leaks"] == 0


def test_without_any_rule_for_port_53_names_leak_to_other_resolvers(rig: Rig, agent: Agent) -> None:
    with asleep(agent):
        rig.run("gateway", "nft", "flush chain inet embargo prerouting; flush chain inet embargo forward")
        report = agent.answer("verify", status=1)
    assert rows(report, function="resolver")[0]["leaks"] == 4


def test_a_resolver_that_does_not_block_leaks_names(rig: Rig, agent: Agent) -> None:
    """As if the agent answered from another policy than the one it says is in force."""
    rig.serve_dns(role="gateway", port=5300)
    rig.run("gateway", "nft", OTHER_RESOLVER)
    try:
        report = agent.answer("verify", status=1)
    finally:
        rig.run("gateway", "nft", "delete table inet other")
    row = rows(report, app="alipay", function="payment", kind="names")[0]
    assert row["verdict"] == "LEAK"
    assert re.search(rf"alipay\.example \w+ by udp {re.escape(LAN4)}\.1:53: ", row["detail"])


def test_nothing_is_proven_where_another_firewall_drops_everything(rig: Rig, agent: Agent) -> None:
    rig.run("gateway", "nft", OTHER_FIREWALL)
    try:
        report = agent.answer("verify")
    finally:
        rig.run("gateway", "nft", "delete table inet other")
    assert report["ok"]
    for row in rows(report, app="control"):
        assert row["verdict"] == ("held" if "name" in row["kind"] else "unproven")
    for kind in PACKETS:
        assert {(row["verdict"], row["held"]) for row in rows(report, kind=kind)} == {("unproven", 0)}
    assert {row["verdict"] for row in rows(report, function="packets")} == {"unproven"}
    assert {row["verdict"] for row in rows(report, kind="names")} == {"held"}


@pytest.mark.parametrize("keys", ["net.ipv4.conf.all.rp_filter=1", "net.ipv6.conf.default.disable_ipv6=1"])
def test_masquerading_and_strict_reverse_paths_do_not_interfere(rig: Rig, agent: Agent, keys: str) -> None:
    """Masquerading of all that is forwarded, strict reverse paths, IPv6 off where nobody says otherwise."""
    rig.run("gateway", "nft", MASQUERADE)
    rig.run("gateway", "sysctl", "-qw", keys)
    try:
        report = agent.answer("verify")
    finally:
        rig.run("gateway", "sysctl", "-qw", f"{keys[:-1]}0")
        rig.run("gateway", "nft", "delete table inet other")
    assert (report["ok"], report["unproven"]) == (True, 0)


# ── what it leaves out, and says so ──────────────────────────────────────────────────────────────────────────────────────


def test_audited_entries_are_not_tried(agent: Agent) -> None:
    with configured(agent, policy={"mode": "audit"}):
        report = agent.answer("verify")
    assert report["ok"]
    assert {(row["verdict"], row["detail"]) for row in rows(report, app="alipay")} == {("skipped", "audit")}


def test_without_a_lan_interface_closed_ports_are_skipped(agent: Agent) -> None:
    with configured(agent, firewall={"lan": []}):
        report = agent.answer("verify")
    assert (report["ok"], report["unproven"]) == (True, 0)
    for function in ("resolver", "dot", "doq"):
        assert all("firewall.lan" in row["detail"] for row in rows(report, function=function, verdict="skipped"))
    row = rows(report, app="alipay", function="payment", kind="names")[0]
    assert (row["verdict"], row["probes"]) == ("held", 2 * 4 * 5)  # on loopback, where alone it listens
    assert {row["verdict"] for row in rows(report, kind="IPv4 addresses")} == {"held"}


def test_a_note_says_that_ipv6_is_not_forwarded(rig: Rig, agent: Agent) -> None:
    rig.run("gateway", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
    try:
        report = agent.answer("verify")
    finally:
        rig.run("gateway", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        rig.run("gateway", "ip", "-6", "route", "replace", "default", "via", "2001:db8:2::2")
    assert report["notes"] == ["IPv6 is not forwarded here: no IPv6 packets were sent"]
    assert {row["detail"] for row in rows(report, kind="IPv6 addresses")} == {"IPv6 is not forwarded here"}
    assert rows(report, app="alipay", function="payment", kind="names")[0]["held"] == 2 * 8 * 5


def test_without_scapy_the_rest_is_tried(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "scapy").mkdir()
    (tmp_path / "scapy/__init__.py").write_text("raise ImportError")
    path = os.pathsep.join((str(tmp_path), str(Path(embargo.__file__).parent.parent)))
    command = [*agent.prefix, sys.executable, "-m", "embargo", "verify", "-c", str(agent.config), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for kind in ("hand-crafted IPv4 packets", "hand-crafted IPv6 packets", "IPv4 inside ::ffff:0:0/96"):
        assert [(row["verdict"], "needs scapy" in row["detail"]) for row in rows(report, kind=kind)] == [("skipped", True)]
    assert rows(report, app="alipay", function="payment", kind="IPv4 addresses")[0]["verdict"] == "held"


def test_an_agent_that_does_not_run_proves_nothing(rig: Rig, tmp_path: Path) -> None:
    quiet = Agent(tmp_path, rig.prefix("gateway"))
    quiet.write_config()
    assert "no agent is running" in quiet.cli("verify", status=1).stderr
    assert quiet.answer("verify", status=1)["running"] is False


def test_it_must_run_in_the_network_namespace_of_the_agent(agent: Agent) -> None:
    command = [sys.executable, "-m", "embargo", "verify", "-c", str(agent.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "ip netns exec" in done.stderr) == (1, True)


def test_it_needs_root(agent: Agent) -> None:
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "embargo", "verify", "-c",
               str(agent.config)]  # fmt: skip
    done = subprocess.run([*agent.prefix, *command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "requires root" in done.stderr) == (2, True)


# ── what it leaves behind ────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_left_behind_and_no_packet_leaves_the_machine(rig: Rig, agent: Agent) -> None:
    rig.run("gateway", "nft", COUNTERS)
    try:
        before, reloads = state(rig), len(agent.events("reload"))
        answer, status = rig.dig("client", f"@{LAN4}.1", "free.example"), agent.answer("status")
        assert answer.rcode == "NOERROR"  # the counters count
        zero = rig.run("gateway", "nft", "list table inet count").stdout
        assert zero.count("packets 0 ") == 0
        agent.cli("verify", "--all")
        time.sleep(1)  # and the agent sees no other machine than before
        assert rig.run("gateway", "nft", "list table inet count").stdout == zero
        assert state(rig) == before
    finally:
        rig.run("gateway", "nft", "delete table inet count")
    after = agent.answer("status")
    assert len(agent.events("reload")) == reloads
    for key in ("generation", "workers", "worker_restarts", "listen", "upstreams"):
        assert after[key] == status[key]
    assert after["reload"]["ago"] > status["reload"]["ago"]  # nothing was even looked at
    assert rig.dig("client", f"@{LAN4}.1", "free.example").rcode == "NOERROR"


def test_leaking_packets_stay_on_the_machine_too(rig: Rig, agent: Agent) -> None:
    """An answer of the sink's would be refused on its way back, with a packet to the listed address: out of the machine."""
    rig.run("gateway", "nft", COUNTERS)
    try:
        with asleep(agent):
            rig.run("gateway", "nft", "flush chain inet embargo to4; flush chain inet embargo to6")
            report = agent.answer("verify", status=1)
        assert {row["verdict"] for row in rows(report, kind="IPv4 addresses")} == {"LEAK"}
        assert {row["verdict"] for row in rows(report, kind="IPv6 addresses")} == {"LEAK"}
        assert "packets 0 " in rig.run("gateway", "nft", "list table inet count").stdout
    finally:
        rig.run("gateway", "nft", "delete table inet count")
    until(lambda: agent.answer("verify")["ok"], "the guardian has mended it")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_nothing(rig: Rig, agent: Agent, number: signal.Signals) -> None:
    before = state(rig)
    process = started(rig, agent)
    process.send_signal(number)
    assert process.wait(10) == 1
    assert state(rig) == before


def test_the_next_run_removes_what_a_killed_run_has_left(rig: Rig, agent: Agent) -> None:
    before = state(rig)
    process = started(rig, agent)
    process.kill()
    process.wait()
    assert "embargo-verify" in rig.run("gateway", "ip", "rule").stdout
    assert agent.answer("verify")["ok"]
    assert state(rig) == before


def test_a_second_run_at_the_same_time_is_refused(rig: Rig, agent: Agent) -> None:
    before = state(rig)
    process = started(rig, agent)
    assert "another `embargo verify` is running here" in agent.cli("verify", status=1).stderr
    assert process.wait(60) == 0
    assert state(rig) == before


def started(rig: Rig, agent: Agent) -> "subprocess.Popen[bytes]":
    """A run in the middle of its work."""
    # a shell's background job ignores SIGINT, and so would what is started from it
    code = (
        "import signal; signal.signal(2, signal.default_int_handler); from embargo.verify import packets; packets.PAUSE = 0.5;"
        " from embargo.cli import verbs; verbs.main()"
    )
    process = subprocess.Popen(
        [*agent.prefix, sys.executable, "-c", code, "verify", "-c", str(agent.config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: "embargo-sink" in rig.run("gateway", "ip", "link").stdout, "it has begun")
    time.sleep(0.3)
    return process
