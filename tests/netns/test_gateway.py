"""The agent on a gateway: a client on one side, an internet on the other, real packets, real dig, the kernel's nftables."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.host.nftables import Nftables
from embargo.daemon.process import privileges
from embargo.firewall import wire
from embargo.firewall.nft import Message
from embargo.firewall.table import TABLE
from support.agent import Agent, running
from support.matrix import pairs
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, UPSTREAM4, UPSTREAM6, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

GATEWAY4, GATEWAY6 = f"{LAN4}.1", f"{LAN6}:1"
GATEWAYS = (GATEWAY4, GATEWAY6)
TRANSPORTS = ("+notcp", "+tcp")
NAMES = ("alipay.example", "a.deeper.name.alipay.example", "WWW.Alipay.EXAMPLE", "log.test")
QTYPES = ("A", "AAAA", "HTTPS", "TXT", "ANY")
LISTED4, LISTED6 = "203.0.113.200", "2001:db8:99::7"
NEIGHBOUR4, NEIGHBOUR6 = "203.0.113.208", "2001:db8:9a::7"  # the first addresses behind the listed networks

APPS = {
    "alipay": {
        "payment": ["alipay.example  # evidence", "!mail.alipay.example  # evidence", "203.0.113.200/29", "2001:db8:99::/48"],
        "telemetry": ["=log.test", "203.0.113.77"],
    },
    "bypass": {"canary": ["use-application-dns.net"], "relay": ["mask.icloud.com"], "doh": ["dns.test", "203.0.113.99"]},
}
RECORDS = (
    "local=/test/",
    "cname=cloaked.test,edge.alipay.example", "host-record=edge.alipay.example,203.0.113.20",
    "host-record=leads.test,203.0.113.201", "host-record=leads6.test,2001:db8:99::5",
    "mx-host=mail.test,mx.alipay.example,10", "host-record=free.test,203.0.113.21,2001:db8:3::21",
    "txt-record=free.test,hello", "host-record=deep.log.test,203.0.113.22",
)  # fmt: skip


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:99::/48", "2001:db8:9a::/48")
        made.serve_dns(*RECORDS)
        made.serve_web()
        yield made


@pytest.fixture(scope="module")
def agent(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    sections = {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [UPSTREAM4], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove"},
    }
    # before the agent runs, everything is reachable: what is refused later is refused by it
    for address in (LISTED4, LISTED6, NEIGHBOUR4, NEIGHBOUR6, "203.0.113.77", "203.0.113.99"):
        assert rig.reach("client", address) == "open"
    assert rig.dig("client", f"@{OTHER4}", "www.alipay.example").answers == (f"A {WEB4}",)
    assert rig.reach("client", WEB4, 853) == "open"
    root = tmp_path_factory.mktemp("gateway")
    with running(root, prefix=rig.prefix("gateway"), apps=APPS, **sections) as started:
        started.port = 53
        yield started


def has_event(agent: Agent, kind: str, **members: object) -> bool:
    return any(all(event.get(key) == value for key, value in members.items()) for event in agent.events(kind))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(("server", "transport", "name", "qtype"), pairs(GATEWAYS, TRANSPORTS, NAMES, QTYPES))
def test_a_blocked_name_is_blocked(rig: Rig, server: str, transport: str, name: str, qtype: str) -> None:
    answer = rig.dig("client", f"@{server}", transport, name, qtype)
    assert (answer.rcode, answer.answers) == ("NXDOMAIN", ())
    assert {"qr", "ra"} <= answer.flags
    assert "aa" not in answer.flags
    assert re.fullmatch(r"SOA blocked\.invalid\. hostmaster\.invalid\. \d+ \d+ \d+ \d+ 10", answer.authority[0])
    why = r"15 \(Blocked\): \(app=alipay function=\w+ list=alipay/\w+\.list:1 rule==?[a-z.]+\)"
    assert re.fullmatch(why, answer.ede)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("server", GATEWAYS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_allowed_name_is_answered_as_the_upstream_answers_it(rig: Rig, server: str, transport: str) -> None:
    for qtype in ("A", "AAAA", "TXT", "MX"):
        ours = rig.dig("client", f"@{server}", transport, "free.test", qtype)
        theirs = rig.dig("internet", f"@{UPSTREAM4}", transport, "free.test", qtype)
        assert (ours.rcode, sorted(ours.answers)) == (theirs.rcode, sorted(theirs.answers))
    assert rig.dig("client", f"@{server}", transport, "mail.alipay.example").answers == (f"A {WEB4}",)
    assert rig.dig("client", f"@{server}", transport, "deep.log.test").answers == ("A 203.0.113.22",)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("server", GATEWAYS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("name", "qtype", "rule"),
    [
        ("cloaked.test", "A", "alipay.example"),
        ("leads.test", "A", "203.0.113.200/29"),
        ("leads6.test", "AAAA", "2001:db8:99::/48"),
        ("mail.test", "MX", "alipay.example"),
    ],
)
def test_an_answer_that_leads_to_something_blocked_is_blocked(
    rig: Rig, server: str, transport: str, name: str, qtype: str, rule: str
) -> None:
    assert rig.dig("internet", f"@{UPSTREAM4}", name, qtype).answers
    answer = rig.dig("client", f"@{server}", transport, name, qtype)
    assert (answer.rcode, answer.answers) == ("NXDOMAIN", ())
    assert f"rule={rule})" in answer.ede


@pytest.mark.parametrize(
    ("mode", "rcode", "answers4", "answers6"),
    [
        ("nodata", "NOERROR", (), ()),
        ("null", "NOERROR", ("A 0.0.0.0",), ("AAAA ::",)),
        ("refused", "REFUSED", (), ()),
        (["192.0.2.99", "2001:db8::99"], "NOERROR", ("A 192.0.2.99",), ("AAAA 2001:db8::99",)),
    ],
)
def test_every_block_mode_is_answered(
    rig: Rig, agent: Agent, mode: object, rcode: str, answers4: tuple[str, ...], answers6: tuple[str, ...]
) -> None:
    agent.write_config(dns={"block_mode": mode})
    agent.cli("reload")
    try:
        for server in GATEWAYS:
            for transport in TRANSPORTS:
                for qtype, expected in (("A", answers4), ("AAAA", answers6), ("TXT", ())):
                    answer = rig.dig("client", f"@{server}", transport, "www.alipay.example", qtype)
                    assert (answer.rcode, answer.answers) == (rcode, expected)
                    assert "app=alipay function=payment" in answer.ede
                assert rig.dig("client", f"@{server}", transport, "use-application-dns.net").rcode == "NXDOMAIN"
    finally:
        agent.write_config(dns={"block_mode": "nxdomain"})
        agent.cli("reload")


@pytest.mark.usefixtures("agent")
def test_canary_and_relay_names_are_nxdomain_and_designated_resolvers_nodata(rig: Rig) -> None:
    for name in ("use-application-dns.net", "mask.icloud.com"):
        for qtype in ("A", "AAAA", "HTTPS", "TXT"):
            assert rig.dig("client", f"@{GATEWAY4}", name, qtype).rcode == "NXDOMAIN"
    answer = rig.dig("client", f"@{GATEWAY4}", "_dns.resolver.arpa", "SVCB")
    assert (answer.rcode, answer.answers) == ("NOERROR", ())


@pytest.mark.usefixtures("agent")
def test_a_client_with_a_global_ipv6_address_is_served_and_a_stranger_is_not(rig: Rig) -> None:
    assert rig.dig("client", f"@{GATEWAY6}", "-b", f"{LAN6}:10", "free.test").answers == ("A 203.0.113.21",)
    assert rig.dig("internet", f"@{GATEWAY4}", "free.test").rcode == ""


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(("listed", "neighbour"), [(LISTED4, NEIGHBOUR4), (LISTED6, NEIGHBOUR6)])
def test_a_blocked_network_is_unreachable_and_the_address_beside_it_works(rig: Rig, listed: str, neighbour: str) -> None:
    assert rig.reach("client", listed) == "refused"
    assert rig.reach("client", listed, udp=True) in ("refused", "unreachable", "silent")
    assert rig.reach("gateway", listed) == "refused"
    assert rig.reach("client", neighbour) == "open"
    assert rig.reach("client", neighbour, udp=True) == "open"
    assert rig.reach("gateway", neighbour) == "open"


@pytest.mark.usefixtures("agent")
def test_a_single_address_is_blocked_and_the_next_one_works(rig: Rig) -> None:
    assert rig.reach("client", "203.0.113.77") == "refused"
    assert rig.reach("client", "203.0.113.78") == "open"


def test_drops_are_logged_with_client_destination_app_list_and_line(rig: Rig, agent: Agent) -> None:
    rig.reach("client", "203.0.113.203", 8080)
    expected = {
        "client": f"{LAN4}.10", "dst": "203.0.113.203", "dport": 8080, "proto": "tcp", "action": "reject", "mode": "block",
        "app": "alipay", "function": "payment", "list": "alipay/payment.list", "line": 3, "rule": "203.0.113.200/29",
    }  # fmt: skip
    until(lambda: has_event(agent, "drop", **expected), "the IPv4 drop is logged")
    rig.reach("client", "2001:db8:99::8", 443)
    until(lambda: has_event(agent, "drop", client=f"{LAN6}:10", dst="2001:db8:99::8", line=4), "the IPv6 drop is logged")
    shown = agent.cli("log", "--layer", "drop", "--client", f"{LAN4}.10").stdout
    assert "203.0.113.203 tcp/8080" in shown
    assert "alipay/payment.list:3" in shown
    assert re.match(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}$", agent.events("drop")[0]["client_mac"])


def test_blocked_names_are_logged_with_the_client_that_asked(rig: Rig, agent: Agent) -> None:
    rig.dig("client", f"@{GATEWAY4}", "-b", f"{LAN4}.11", "logged.alipay.example", "HTTPS")
    expected = {
        "client": f"{LAN4}.11", "qname": "logged.alipay.example", "qtype": "HTTPS", "action": "nxdomain", "mode": "block",
        "app": "alipay", "function": "payment", "list": "alipay/payment.list", "line": 1, "rule": "alipay.example",
    }  # fmt: skip
    until(lambda: has_event(agent, "dns", **expected), "the query is logged")


def test_an_open_flow_ends_when_its_address_becomes_blocked(rig: Rig, agent: Agent) -> None:
    with rig.socket("client", socket.SOCK_STREAM, WEB4) as flow:
        flow.settimeout(5)
        flow.connect(("203.0.113.61", 443))
        flow.sendall(b"before")
        assert flow.recv(64) == b"before"
        agent.cli("block", "203.0.113.61")
        with pytest.raises(ConnectionResetError):
            _talk(flow)
    agent.cli("forget", "203.0.113.61")
    assert rig.reach("client", "203.0.113.61") == "open"


def _talk(flow: socket.socket) -> None:
    for _ in range(50):
        flow.sendall(b"after")
        assert flow.recv(64), "the flow ended without a reset"


def test_an_allowed_name_passes_although_it_leads_to_a_blocked_network(rig: Rig, agent: Agent) -> None:
    assert rig.dig("client", f"@{GATEWAY4}", "leads.test").rcode == "NXDOMAIN"
    assert rig.reach("client", "203.0.113.201") == "refused"
    agent.cli("allow", "leads.test")
    try:
        assert rig.dig("client", f"@{GATEWAY4}", "leads.test").answers == ("A 203.0.113.201",)
        until(lambda: rig.reach("client", "203.0.113.201") == "open", "its address passes")
        assert rig.reach("client", "203.0.113.202") == "refused"
        assert agent.answer("why", "203.0.113.201")["passing"] is True
    finally:
        agent.cli("forget", "leads.test")


# ── ways round ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("resolver", [OTHER4, OTHER6])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_hard_coded_resolver_is_answered_by_us(rig: Rig, resolver: str, transport: str) -> None:
    blocked = rig.dig("client", f"@{resolver}", transport, "www.alipay.example")
    assert blocked.rcode == "NXDOMAIN"
    assert "app=alipay" in blocked.ede
    assert rig.dig("client", f"@{resolver}", transport, "free.test").answers == ("A 203.0.113.21",)


def test_encrypted_dns_by_port_and_by_address_is_refused(rig: Rig, agent: Agent) -> None:
    for address in (WEB4, WEB6):
        assert rig.reach("client", address, 853) == "refused"
        assert rig.reach("client", address, 853, udp=True) in ("refused", "unreachable", "silent")
        assert rig.reach("client", address, 443) == "open"
    assert rig.reach("client", "203.0.113.99") == "refused"
    assert rig.dig("client", f"@{GATEWAY4}", "dns.test").rcode == "NXDOMAIN"
    until(lambda: has_event(agent, "drop", app="bypass", function="dot", dport=853), "the drop is logged")
    until(lambda: has_event(agent, "drop", app="bypass", function="doh", list="bypass/doh.list", line=2), "and this one")


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("server", [f"{LAN4}.10", f"{LAN6}:10"])
def test_dns_from_outside_to_a_server_behind_the_gateway_is_untouched(rig: Rig, server: str) -> None:
    rig.serve_dns("txt-record=who.test,behind", role="client")
    for transport in TRANSPORTS:
        assert rig.dig("internet", f"@{server}", transport, "who.test", "TXT").answers == ('TXT "behind"',)


def test_clients_that_are_excepted_are_not_policed(rig: Rig, agent: Agent) -> None:
    agent.write_config(firewall={"except": [f"{LAN4}.11"]})
    agent.cli("reload")
    try:
        assert rig.dig("client", "-b", f"{LAN4}.11", f"@{OTHER4}", "www.alipay.example").answers == (f"A {WEB4}",)
        with rig.socket("client", socket.SOCK_STREAM, LISTED4) as sock:
            sock.settimeout(3)
            sock.bind((f"{LAN4}.11", 0))
            sock.connect((LISTED4, 443))
            sock.sendall(b"hello")
            assert sock.recv(64) == b"hello"
        assert rig.reach("client", LISTED4) == "refused"
    finally:
        agent.write_config(firewall={"except": []})
        agent.cli("reload")


# ── the table, and what stays of it ──────────────────────────────────────────────────────────────────────────────────────


def test_a_list_change_is_in_force_in_both_layers(rig: Rig, agent: Agent) -> None:
    path = agent.root / "apps/alipay/payment.list"
    good = path.read_text()
    path.write_text(good + "203.0.113.62\nfresh.test\n")
    until(lambda: rig.reach("client", "203.0.113.62") == "refused", "the address is blocked")
    assert rig.dig("client", f"@{GATEWAY4}", "fresh.test").rcode == "NXDOMAIN"
    path.write_text(good)
    until(lambda: rig.reach("client", "203.0.113.62") == "open", "the address is free again")


def test_the_table_is_readable_and_the_only_one(rig: Rig, agent: Agent) -> None:
    assert rig.reach("client", LISTED4) == "refused"
    text = rig.run("gateway", "nft", "list", "ruleset").stdout
    assert re.findall(r"^table (.*) \{", text, re.MULTILINE) == ["inet embargo"]
    assert 'comment "app alipay, function payment"' in text
    assert '"lan0"' in text
    report = agent.answer("status")["firewall"]
    assert report["present"] is True
    assert report["counters"]["alipay_payment"][0] > 0
    assert agent.cli("check").stdout == "no problems\n"
    tables = json.loads(rig.run("gateway", "nft", "-j", "list", "tables").stdout)["nftables"]
    assert [entry["table"]["name"] for entry in tables if "table" in entry] == ["embargo"]


def test_a_killed_guardian_leaves_the_rules_and_is_started_again(rig: Rig, agent: Agent) -> None:
    guardian = agent.answer("status")["firewall"]["guardian"]
    os.kill(guardian, signal.SIGKILL)
    assert rig.reach("client", LISTED4) == "refused"
    until(lambda: agent.answer("status")["firewall"]["guardian"] not in (0, guardian), "another guardian runs")
    until(lambda: agent.answer("status")["firewall"]["present"], "it has the table")
    agent.cli("block", "203.0.113.63")
    assert rig.reach("client", "203.0.113.63") == "refused"
    agent.cli("forget", "203.0.113.63")
    assert has_event(agent, "firewall", what="guardian restarted")


def gateway_agent(rig: Rig, root: Path, **firewall: object) -> Agent:
    made = Agent(root, rig.prefix("gateway"), APPS)
    made.port = 53
    made.write_config(
        dns={"listen": ["127.0.0.1:53"], "upstream": [UPSTREAM4], "workers": 1},
        firewall={"enabled": True, "lan": ["lan0"], "log_group": 8200, **firewall},
    )
    return made


@pytest.fixture
def quiet(rig: Rig) -> Iterator[Rig]:
    """A rig of its own: what an agent leaves in the kernel must not meet the other tests."""
    del rig
    with Rig() as made:
        made.own("2001:db8:99::/48", "2001:db8:9a::/48")
        made.serve_dns(*RECORDS)
        made.serve_web()
        yield made


@pytest.mark.parametrize(
    ("fail", "on_stop", "listed", "resolver"),
    [
        ("closed", "keep", "refused", ""),  # the block sets stay, port 53 is rejected
        ("open", "keep", "refused", "NOERROR"),  # the block sets stay, port 53 is passed on unfiltered
        ("closed", "remove", "open", "NOERROR"),
        ("open", "remove", "open", "NOERROR"),
    ],
)
def test_what_stays_when_the_agent_stops(
    quiet: Rig, tmp_path: Path, fail: str, on_stop: str, listed: str, resolver: str
) -> None:
    agent = gateway_agent(quiet, tmp_path, fail=fail, on_stop=on_stop)
    agent.start()
    until(lambda: quiet.dig("client", f"@{OTHER4}", "www.alipay.example").rcode == "NXDOMAIN", "port 53 is intercepted")
    assert quiet.reach("client", LISTED4) == "refused"
    assert agent.stop() == 0
    assert quiet.reach("client", LISTED4) == listed
    assert quiet.dig("client", f"@{OTHER4}", "www.alipay.example").rcode == resolver


@pytest.mark.parametrize(("fail", "rcode"), [("closed", ""), ("open", "NOERROR")])
def test_what_holds_while_nobody_answers(quiet: Rig, tmp_path: Path, fail: str, rcode: str) -> None:
    agent = gateway_agent(quiet, tmp_path, fail=fail)
    agent.start()
    children = agent.children()
    try:
        until(lambda: quiet.dig("client", f"@{OTHER4}", "www.alipay.example").rcode == "NXDOMAIN", "port 53 is intercepted")
        assert agent.process is not None
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its children end by themselves")
        answer = until(
            lambda: quiet.dig("client", f"@{OTHER4}", "www.alipay.example").rcode == rcode, "port 53 is as configured", 15
        )
        assert answer
        assert quiet.reach("client", LISTED4) == "refused"
    finally:
        quiet.run("gateway", "nft", "delete", "table", "inet", "embargo", check=False)


def test_an_interface_whose_clients_nobody_polices_is_named(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.start()

    def said() -> list[str]:
        return [text for text in agent.answer("status")["uncovered"] if text.startswith("clients behind")]

    try:
        assert said() == [], "lan0 has them, wan0 is the way out"
        quiet.run("gateway", "ip", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
        quiet.run("gateway", "ip", "addr", "add", "192.0.2.129/28", "dev", "guest0")
        expected = "clients behind guest0, if there are any: firewall.lan does not name them"
        until(lambda: said() == [expected], "it is named")
    finally:
        quiet.run("gateway", "ip", "link", "del", "guest0", check=False)
        agent.stop()


def test_a_start_that_the_kernel_refuses_leaves_the_last_generation_to_the_next(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.start()
    assert agent.stop() == 0
    other = quiet.within("gateway", Nftables)
    other.transact([Message(0, 0x400, wire.attribute(1, TABLE.encode() + b"\0") + wire.u32(2, 2), "owned table")])
    agent.start(wait=False)
    assert agent.process is not None
    assert agent.process.wait(30) == 1
    assert "another process owns the table" in agent.errors
    other.close()
    (tmp_path / "apps/alipay/payment.list").write_bytes(b"\0 no list any more")
    agent.start()
    try:
        assert agent.answer("status")["generation"] == 1
        assert quiet.reach("client", LISTED4) == "refused"
    finally:
        agent.stop()


def test_without_a_lan_all_forwarded_traffic_is_policed_and_nothing_is_intercepted(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, lan=[], on_stop="remove")
    agent.start()
    try:
        assert quiet.reach("client", LISTED4) == "refused"
        assert quiet.dig("client", f"@{OTHER4}", "www.alipay.example").answers == (f"A {WEB4}",)
        assert any("firewall.lan" in text for text in agent.answer("status")["uncovered"])
    finally:
        agent.stop()


def test_an_upstream_over_ipv6_and_over_tcp(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.write_config(dns={"upstream": [f"tcp://[{UPSTREAM6}]"]})
    agent.start()
    try:
        assert quiet.dig("client", f"@{GATEWAY4}", "free.test").answers == ("A 203.0.113.21",)
        assert quiet.dig("client", f"@{GATEWAY6}", "free.test", "AAAA").answers == ("AAAA 2001:db8:3::21",)
    finally:
        agent.stop()


def test_an_upstream_that_the_lists_name_is_asked_by_us_and_by_nobody_else(quiet: Rig, tmp_path: Path) -> None:
    """Our resolvers are known by their user: not even root may take their way, and no client may use the server for DoH."""
    listed = "203.0.113.99"
    sections = {
        "dns": {"listen": ["127.0.0.1:53", "[::1]:53"], "upstream": [listed], "workers": 1},
        "firewall": {"enabled": True, "lan": ["lan0"], "on_stop": "remove"},
    }
    assert quiet.dig("gateway", f"@{listed}", "free.test").answers == ("A 203.0.113.21",)
    assert quiet.reach("client", listed) == "open"
    with running(tmp_path, prefix=quiet.prefix("gateway"), apps=APPS, **sections) as agent:
        for transport in TRANSPORTS:
            assert quiet.dig("client", f"@{GATEWAY4}", transport, "free.test").answers == ("A 203.0.113.21",)
        assert quiet.reach("client", listed) == "refused"
        assert quiet.dig("gateway", "+time=1", f"@{listed}", "free.test").rcode == ""
        assert agent.answer("why", listed)["function"] == "doh"


def test_audit_logs_and_lets_pass(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.write_config(policy={"mode": "audit"})
    agent.start()
    try:
        assert quiet.dig("client", f"@{GATEWAY4}", "www.alipay.example").answers == (f"A {WEB4}",)
        assert quiet.reach("client", LISTED4) == "open"
        until(lambda: has_event(agent, "dns", mode="audit", action="pass", app="alipay"), "the query is logged")
        until(lambda: has_event(agent, "drop", mode="audit", action="pass", dst=LISTED4), "the flow is logged")
    finally:
        agent.stop()


def test_a_log_group_that_is_taken_is_named(quiet: Rig, tmp_path: Path) -> None:
    first, second = gateway_agent(quiet, tmp_path / "one", lan=[], on_stop="remove"), tmp_path / "two"
    first.start()
    try:
        agent = gateway_agent(quiet, second, lan=[])
        agent.write_config(dns={"listen": ["127.0.0.1:5353"]})
        agent.start(wait=False)
        assert agent.process is not None
        assert agent.process.wait(30) == 1
        assert "log group 8200: another process reads it" in agent.errors
        assert quiet.reach("client", LISTED4) == "refused"
    finally:
        first.stop()


def test_every_key_of_an_event_is_documented(agent: Agent) -> None:
    page = (Path(__file__).parent.parent.parent / "docs/events.md").read_text()
    documented = set(re.findall(r"`(\w+)`", page))
    written = {key for event in agent.events() for key in event}
    assert {"qname", "dst", "rule"} <= written <= documented


def capabilities(pid: int) -> tuple[set[int], set[int]]:
    """(effective, permitted) of a process, as the kernel tells them."""
    found = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    bits = {key: int(found[key], 16) for key in ("CapEff", "CapPrm")}
    held = {key: {n for n in range(64) if bits[key] >> n & 1} for key in bits}
    return held["CapEff"], held["CapPrm"]


def test_the_guardian_alone_can_change_the_firewall(agent: Agent) -> None:
    report = agent.answer("status")
    admin = {privileges.CAP_NET_ADMIN}
    assert capabilities(report["firewall"]["guardian"]) == (admin, admin)
    for worker in report["workers"]:
        assert capabilities(worker) == (set(), set())
        assert "Uid:\t0" not in Path(f"/proc/{worker}/status").read_text()
    effective, permitted = capabilities(report["pid"])
    assert effective == set(privileges.AT_HAND)
    assert permitted == {*privileges.AT_HAND, *privileges.IN_RESERVE}
    agent.cli("reload")
    assert capabilities(report["pid"]) == (effective, permitted)


def test_a_worker_can_only_read_which_addresses_are_marked(agent: Agent) -> None:
    (worker,) = agent.answer("status")["workers"]
    of = Path(f"/proc/{worker}")
    mapped = [line.split()[1] for line in (of / "maps").read_text().splitlines() if "embargo-marks" in line]
    assert mapped == ["r--s"]
    opened = [entry for entry in (of / "fd").iterdir() if "embargo-marks" in os.readlink(entry)]
    assert opened
    for entry in opened:
        (flags,) = (line for line in (of / "fdinfo" / entry.name).read_text().splitlines() if line.startswith("flags:"))
        assert int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY
        assert os.stat(entry).st_mode & 0o777 == 0o600, "it cannot be opened anew"
        assert os.stat(entry).st_uid != os.stat(of).st_uid


def test_ctrl_c_stops_in_order_and_takes_the_rules_away(quiet: Rig, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole group: the children must not be in it."""
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.start()
    assert quiet.reach("client", LISTED4) == "refused"
    assert agent.process is not None
    group = {os.getpgid(pid) for pid in agent.children()}
    assert os.getpgid(agent.process.pid) not in group
    assert agent.stop(signal.SIGINT) == 0
    assert quiet.reach("client", LISTED4) == "open"
    assert "Traceback" not in agent.errors
    assert "embargo" not in quiet.run("gateway", "nft", "list", "tables").stdout


def test_what_others_do_to_the_ruleset_passes_our_table_over(rig: Rig, agent: Agent) -> None:
    """Where the kernel knows owned tables that persist (6.9), which the machine of the tests does."""
    assert agent.answer("status")["firewall"]["owned"]
    before = len(agent.events("firewall"))
    for command in (
        "flush ruleset",
        "delete table inet embargo",
        "flush chain inet embargo police",
        "flush table inet embargo",
    ):
        refused = rig.run("gateway", "nft", command, check=False)
        assert command == "flush ruleset" or "Operation not permitted" in refused.stderr
        assert rig.reach("client", LISTED4) == "refused"
        assert rig.dig("client", f"@{OTHER4}", "www.alipay.example").rcode == "NXDOMAIN"
    assert len(agent.events("firewall")) == before, "there was nothing to restore"


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("flush ruleset", "table removed"),
        ("delete table inet embargo", "table removed"),
        ("flush table inet embargo", "rules changed"),
        ("flush chain inet embargo police", "rules changed"),
        ("add table inet embargo { flags dormant; }", "rules changed"),
        ("delete element inet embargo MAP { 203.0.113.77 }", "rules changed"),
    ],
)
def test_what_others_do_to_the_ruleset_is_undone(quiet: Rig, tmp_path: Path, command: str, what: str) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove", protect=False)
    agent.start()
    try:
        assert not agent.answer("status")["firewall"]["owned"]
        assert quiet.reach("client", "203.0.113.77") == "refused"
        if "MAP" in command:
            table = quiet.run("gateway", "nft", "-t", "list", "table", "inet", "embargo").stdout
            command = command.replace("MAP", re.findall(r"map (address4_\d+)", table)[0])
        quiet.run("gateway", "nft", command)
        until(lambda: has_event(agent, "firewall", what=f"{what} by others, restored"), "it is an event", 2.0)
        assert quiet.reach("client", "203.0.113.77") == "refused"
        assert quiet.reach("client", LISTED6) == "refused"
        assert agent.answer("status")["firewall"]["restored"] == 1
    finally:
        agent.stop()


def test_a_guardian_that_is_killed_leaves_its_rules_and_the_next_one_takes_them_over(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.start()
    try:
        guardian = agent.answer("status")["firewall"]["guardian"]
        began = time.monotonic()
        os.kill(guardian, signal.SIGKILL)
        while (
            agent.answer("status")["firewall"]["guardian"] in (0, guardian) or not agent.answer("status")["firewall"]["owned"]
        ):
            assert quiet.reach("client", LISTED4) == "refused"
            assert time.monotonic() < began + 10
        assert quiet.reach("client", LISTED4) == "refused"
        until(lambda: has_event(agent, "firewall", what="guardian restarted"), "it is an event")
    finally:
        agent.stop()


def test_a_stop_while_the_guardian_is_dead_takes_the_rules_away_too(quiet: Rig, tmp_path: Path) -> None:
    agent = gateway_agent(quiet, tmp_path, on_stop="remove")
    agent.start()
    os.kill(agent.answer("status")["firewall"]["guardian"], signal.SIGKILL)
    assert agent.stop() == 0
    assert quiet.reach("client", LISTED4) == "open"
