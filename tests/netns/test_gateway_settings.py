"""The agent on a gateway with other settings: no LAN, upstreams over IPv6 and TCP, audit, and what it reports of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent import running
from support.gateway import APPS, GATEWAY4, GATEWAY6, LISTED4, TRANSPORTS, gateway_agent, has_event, internet
from tools.rig import OTHER4, UPSTREAM6, WEB4, Rig, until

pytestmark = pytest.mark.root


@pytest.fixture
def quiet() -> Iterator[Rig]:
    """A rig for one test: what its agent leaves in the kernel does not reach the next test."""
    with internet() as made:
        yield made


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


def test_without_a_lan_all_forwarded_traffic_is_filtered_and_nothing_is_intercepted(quiet: Rig, tmp_path: Path) -> None:
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
