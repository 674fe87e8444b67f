"""The clock is set forwards and backwards by hours (libfaketime) under load: durations stay the same."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from faults.conftest import BEHIND, gateway
from support.agent import Agent, running
from support.load import APPS, Load, all_accounted, bounded, pids, uses
from tools.rig import LAN4, Rig, until

pytestmark = pytest.mark.root

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), Path("libfaketimeMT.so.1"))
HOURS = 5


class Clock:
    """The clock of the agent's processes. Its file is readable by the resolvers, which run as another user."""

    def __init__(self) -> None:
        descriptor, self.path = tempfile.mkstemp(prefix="embargo-clock-")
        os.fchmod(descriptor, 0o644)
        os.close(descriptor)
        self.set(0)

    def set(self, hours: int) -> None:
        temporary = f"{self.path}.new"
        with open(temporary, "w") as file:
            file.write(f"{hours:+d}h\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path)

    @property
    def environment(self) -> list[str]:
        return [
            "env", f"LD_PRELOAD={LIBRARY}", f"FAKETIME_TIMESTAMP_FILE={self.path}", "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        ]  # fmt: skip


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    yield made
    os.unlink(made.path)


@pytest.fixture
def agent(faulty: Rig, clock: Clock, tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/learnt.jsonl").write_text(json.dumps({"version": 1, "saved": time.time()}) + "\n")
    prefix = [*faulty.prefix("gateway"), *clock.environment]
    with running(tmp_path, prefix=prefix, apps=APPS, **gateway(log={"names": "all"})) as started:
        yield started


def shown(agent: Agent) -> float:
    """The hours between the agent's last event and now."""
    last = datetime.fromisoformat(agent.events()[-1]["ts"]).timestamp()
    return (last - time.time()) / 3600


def noticed(agent: Agent, hours: int) -> None:
    until(lambda: abs(shown(agent) - hours) < 0.1, "events have the time of now")


def learnt(rig: Rig, agent: Agent, name: str) -> None:
    """Ask for a listed name, and wait until the addresses that it leads to are blocked."""
    assert rig.dig("client", f"@{LAN4}.1", name).rcode == "NXDOMAIN"
    until(lambda: rig.reach("client", BEHIND[name], 8080) == "refused", f"{BEHIND[name]} is learnt")


def durations(agent: Agent) -> None:
    """No duration in `status` follows the clock; a file that is newer than the clock has no age."""
    status = agent.ask("status")
    assert all(0 <= each < 3600 for each in (status["uptime"], status["since"], status["reload"]["ago"]))
    ages = [each.get("age", 0) for each in status["lists"]]
    assert ages
    assert min(ages) >= 0


@pytest.mark.parametrize("jumps", [(HOURS, -HOURS, 0)], ids=str)
def test_the_agent_works_when_the_clock_jumps(faulty: Rig, clock: Clock, agent: Agent, jumps: tuple[int, ...]) -> None:
    before = uses(agent)
    learnt(faulty, agent, "pay.alipay.example")
    hits = agent.ask("status")["cache"]["hits"]
    with Load(faulty) as load:
        for number, hours in enumerate(jumps):
            clock.set(hours)
            load.goes_on()
            noticed(agent, hours)
            agent.write_app("qq", {"payment": [f"qq{number}.example"]})
            assert agent.ask("reload")["ok"]
            assert agent.ask("why", subject=f"qq{number}.example")["verdict"] == "blocked"
            assert faulty.reach("client", BEHIND["pay.alipay.example"], 8080) == "refused", "what was learnt has its time"
            durations(agent)
        cached = [each for each in load.questions if each.name.startswith("cached")]
        assert agent.ask("status")["cache"]["hits"] - hits > len(cached) * 0.6, "the cache has too"
    load.holds(failed=False)
    bounded(before, uses(agent))
    agent.stop()
    all_accounted(agent, load)
    assert all(event["count"] >= 1 for event in agent.events("dns"))
    assert sum(event.get("lost", 0) for event in agent.events()) == 0


@pytest.mark.parametrize("hours", [HOURS, -HOURS])
def test_addresses_learnt_after_a_jump_survive_the_guardian(faulty: Rig, clock: Clock, agent: Agent, hours: int) -> None:
    clock.set(hours)
    learnt(faulty, agent, "more.alipay.example")
    os.kill(pids(agent, "guardian")[0], signal.SIGKILL)
    until(lambda: agent.ask("status")["firewall"]["guardian_restarts"] == 1, "another guardian runs")
    until(lambda: agent.ask("status")["firewall"]["present"], "it has the rules")
    assert agent.ask("reload")["ok"]
    assert faulty.reach("client", BEHIND["more.alipay.example"], 8080) == "refused"
    assert agent.ask("status")["firewall"]["learning"]["proving"] == 0
