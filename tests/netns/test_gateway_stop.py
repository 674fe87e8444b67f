"""What stays of the firewall when the agent on a gateway stops, is killed or cannot start, and when others change it."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo.daemon.host.nftables import Nftables
from embargo.firewall import wire
from embargo.firewall.nft import Message
from embargo.firewall.table import TABLE
from support.gateway import LISTED4, LISTED6, gateway_agent, has_event, internet
from tools.rig import OTHER4, Rig, until

pytestmark = pytest.mark.root


@pytest.fixture
def quiet() -> Iterator[Rig]:
    """A rig for one test: what its agent leaves in the kernel does not reach the next test."""
    with internet() as made:
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
