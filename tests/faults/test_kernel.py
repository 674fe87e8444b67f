"""Other programs change interfaces and rules under load: the agent follows the former and restores the latter."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.conftest import Start, gateway, network
from support.agent import Agent, running
from support.load import APPS, LISTED4, LISTED6, Load, all_accounted, bounded, uses
from tools.rig import LAN4, WEB4, Rig, until

pytestmark = pytest.mark.root

OTHER = f"{LAN4}.7"  # one more address of the gateway


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("command", "protect"),
    [
        ("flush ruleset", True),
        ("flush ruleset", False),
        ("delete table inet embargo", False),
        ("flush table inet embargo", False),
    ],
)
def test_rules_flushed_by_another_program_are_restored(faulty: Rig, start: Start, command: str, protect: bool) -> None:
    with start(firewall={"protect": protect}) as agent:
        before = uses(agent)
        with Load(faulty) as load:
            gaps = []
            for number in range(3):
                at = time.monotonic()
                done = faulty.run("gateway", "nft", *command.split(), check=False)
                assert protect or done.returncode == 0, done.stderr
                if not protect:
                    back(agent, number + 1)
                gaps.append(time.monotonic() - at)
                for address in (LISTED4, LISTED6):
                    assert faulty.reach("client", address, 8080) == "refused"
                assert faulty.reach("client", WEB4, 8080) == "open"
                time.sleep(0.3)
        assert min(gaps) < 2.0, gaps
        assert agent.ask("status")["firewall"]["present"]
        if protect:
            assert restored(agent) == 0
            load.holds()
        else:  # between the flush and half a second later there are no rules: packets pass, names do not
            reached = load.echoes[LISTED4] + load.echoes[LISTED6]
            load.echoes[LISTED4] = load.echoes[LISTED6] = 0
            load.holds()
            assert reached < (load.probes[LISTED4] + load.probes[LISTED6]) / 2, "most of the time they are there"
            assert "restored" in str(agent.events("firewall"))
        bounded(before, uses(agent))
    all_accounted(agent, load)


def back(agent: Agent, times: int) -> None:
    until(lambda: restored(agent) >= times, "the rules are back")


def restored(agent: Agent) -> int:
    return int(agent.ask("status")["firewall"]["restored"])


# ── interfaces and addresses ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def own() -> Iterator[Rig]:
    """A network for this module alone, since the tests remove parts of it."""
    with network() as rig:
        yield rig


@pytest.fixture
def agent(own: Rig, tmp_path: Path) -> Iterator[Agent]:
    with running(tmp_path, prefix=own.prefix("gateway"), apps=APPS, **gateway()) as started:
        yield started


def ip(rig: Rig, *words: str) -> None:
    rig.run("gateway", "ip", *words)


def answers(rig: Rig, address: str) -> bool:
    return rig.dig("client", f"@{address}", "+time=1", "www.alipay.example").rcode == "NXDOMAIN"


def test_an_interface_that_goes_down_and_up_is_served_again(own: Rig, agent: Agent) -> None:
    before = uses(agent)
    with Load(own) as load:
        for _ in range(3):
            ip(own, "link", "set", "lan0", "down")
            time.sleep(0.4)
            ip(own, "link", "set", "lan0", "up")
            load.goes_on()
            until(lambda: answers(own, f"{LAN4}.1"), "it answers again")
    load.holds()
    bounded(before, uses(agent))
    assert agent.ask("status")["firewall"]["present"]


def test_added_and_removed_addresses_are_followed(own: Rig, agent: Agent) -> None:
    before = uses(agent)
    with Load(own) as load:
        for _ in range(2):
            ip(own, "address", "add", f"{OTHER}/24", "dev", "lan0")
            until(lambda: answers(own, OTHER), "the added address answers")
            until(lambda: f"{OTHER}:53" in agent.ask("status")["listen"], "it is listened on")
            ip(own, "address", "delete", f"{OTHER}/24", "dev", "lan0")
            until(lambda: f"{OTHER}:53" not in agent.ask("status")["listen"], "it is given up")
            load.goes_on()
    load.holds()
    bounded(before, uses(agent), fds=6)


def test_an_address_that_is_removed_and_comes_back_is_served_again(own: Rig, agent: Agent) -> None:
    with Load(own, f"{LAN4}.1", probes=False) as load:
        ip(own, "address", "delete", f"{LAN4}.1/24", "dev", "lan0")
        until(lambda: f"{LAN4}.1:53" not in agent.ask("status")["listen"], "it is given up")
        ip(own, "address", "add", f"{LAN4}.1/24", "dev", "lan0")
        load.goes_on()
    load.holds(silent=len(load.questions))  # while the address is away nobody can be asked
    assert answers(own, f"{LAN4}.1")


def test_an_interface_that_is_deleted_and_created_again_is_served_again(own: Rig, agent: Agent) -> None:
    """It has the old name, by which rules match, and a new index."""
    client = own.prefix("client")[-1]
    with Load(own, probes=False) as load:
        ip(own, "link", "delete", "lan0")
        time.sleep(0.5)
        ip(own, "link", "add", "lan0", "type", "veth", "peer", "name", "eth0", "netns", client)
        for address in (f"{LAN4}.1/24", "2001:db8:1::1/64"):
            ip(own, "address", "add", address, "dev", "lan0")
        ip(own, "link", "set", "lan0", "up")
        for words in (f"address add {LAN4}.10/24 dev eth0", "link set eth0 up", f"route add default via {LAN4}.1"):
            own.run("client", "ip", *words.split())
        load.goes_on()
    load.holds(silent=len(load.questions))
    assert own.reach("client", LISTED4, 8080) == "refused"
    assert own.reach("client", WEB4, 8080) == "open"
    assert answers(own, f"{LAN4}.1")
