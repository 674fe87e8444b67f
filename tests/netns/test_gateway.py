"""The agent on a gateway: a client on one side, an internet on the other, real packets, real dig, the kernel's nftables."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.process import privileges
from support.agent import Agent, running
from support.gateway import APPS, GATEWAY4, GATEWAY6, LISTED4, LISTED6, TRANSPORTS, has_event, internet
from support.matrix import pairs
from tools.rig import LAN4, LAN6, OTHER4, OTHER6, UPSTREAM4, WEB4, WEB6, Rig, until

pytestmark = pytest.mark.root

GATEWAYS = (GATEWAY4, GATEWAY6)
NAMES = ("alipay.example", "a.deeper.name.alipay.example", "WWW.Alipay.EXAMPLE", "log.test")
QTYPES = ("A", "AAAA", "HTTPS", "TXT", "ANY")
NEIGHBOUR4, NEIGHBOUR6 = "203.0.113.208", "2001:db8:9a::7"  # the first addresses behind the listed networks


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with internet() as made:
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


def test_clients_that_are_excepted_are_not_filtered(rig: Rig, agent: Agent) -> None:
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


# ── the table, and which process may change it ───────────────────────────────────────────────────────────────────────────


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
