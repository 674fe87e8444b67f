"""kill -9 of each kind of process under load: the rules stay, listed names stay blocked, and the process is restarted."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from faults.conftest import Start, gateway
from support.agent import Agent
from support.load import APPS, Load, all_accounted, bounded, pids, supervisor, uses
from support.manager import Manager
from tools.rig import Rig, until

pytestmark = pytest.mark.root


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def replaced(agent: Agent, kind: str, gone: Sequence[int]) -> None:
    """Wait until the killed processes of this kind have been replaced."""
    until(
        lambda: len(set(pids(agent, kind)) - set(gone)) >= len(gone) and not set(pids(agent, kind)) & set(gone), f"{kind}s run"
    )


def is_in_force(rig: Rig) -> bool:
    return rig.run("gateway", "nft", "list", "table", "inet", "embargo", check=False).returncode == 0


def test_a_killed_resolver_is_restarted(faulty: Rig, start: Start) -> None:
    with start() as agent:
        before = uses(agent)
        with Load(faulty) as load:
            for _ in range(4):
                victim = pids(agent, "resolver")[0]
                kill(victim)
                replaced(agent, "resolver", [victim])
                load.goes_on()
        load.holds()
        bounded(before, uses(agent))
    all_accounted(agent, load)


def test_all_resolvers_killed_at_once_are_restarted(faulty: Rig, start: Start) -> None:
    with start() as agent:
        with Load(faulty) as load:
            for _ in range(2):
                victims = pids(agent, "resolver")
                assert len(victims) == 2
                for pid in victims:
                    kill(pid)
                replaced(agent, "resolver", victims)
                load.goes_on()
        load.holds()
    all_accounted(agent, load)


def test_a_killed_guardian_is_restarted_and_adopts_the_rules(faulty: Rig, start: Start) -> None:
    with start() as agent:
        before = uses(agent)
        with Load(faulty) as load:
            for number in range(3):
                (victim,) = pids(agent, "guardian")
                kill(victim)
                assert is_in_force(faulty)
                replaced(agent, "guardian", [victim])
                taken_over(agent, number + 1)
        load.holds()
        bounded(before, uses(agent))
    all_accounted(agent, load)


def taken_over(agent: Agent, restarts: int) -> None:
    def reported() -> bool:
        firewall = agent.ask("status")["firewall"]
        return bool(firewall["present"] and firewall["guardian_restarts"] == restarts)

    until(reported, "the new guardian has taken the rules over")


def refused(agent: Agent) -> None:
    """Wait until the reload has failed because the compiler was killed."""
    until(lambda: "compiler: it ended with status -9" in str(agent.ask("status")["reload"]["errors"]), "it was refused")


def test_a_reload_whose_compiler_is_killed_is_retried(faulty: Rig, start: Start) -> None:
    with start() as agent:
        with Load(faulty) as load:
            generation = agent.ask("status")["generation"]
            for number in range(3):
                agent.write_app("large", {"payment": [f"name{number}-{n}.test" for n in range(30_000)]})
                until(lambda: pids(agent, "compiler"), "a compiler runs")
                kill(pids(agent, "compiler")[0])
                refused(agent)
            until(lambda: agent.ask("status")["generation"] > generation, "it is tried again by itself", 40)
            assert agent.ask("why", subject="name2-29999.test")["verdict"] == "blocked"
        load.holds()
    all_accounted(agent, load)


@pytest.fixture
def manager(faulty: Rig, tmp_path: Path) -> Iterator[Manager]:
    agent = Agent(tmp_path, faulty.prefix("gateway"), APPS)
    agent.write_config(**gateway())
    made = Manager(agent)
    yield made
    if not agent.ended():
        agent.stop()
    made.close()


def test_a_killed_supervisor_is_restarted_with_its_sockets(faulty: Rig, manager: Manager) -> None:
    """The service manager restarts the agent with the stored sockets, as systemd does."""
    manager.start()
    agent = manager.agent
    with Load(faulty) as load:
        for _ in range(2):
            children = agent.children()
            kill(supervisor(agent))
            assert agent.process is not None
            agent.process.wait(10)
            assert is_in_force(faulty)
            ended(children)
            assert is_in_force(faulty)
            manager.listen()
            manager.start()
            load.goes_on()
    load.holds()
    agent.stop()
    all_accounted(agent, load)


def ended(children: Sequence[int]) -> None:
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its children have gone too")
