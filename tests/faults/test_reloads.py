"""Reload after reload under load: nothing is lost or wrong, and nothing grows.

One costs 70 ms without a compiler: 17 ms the guardian's work, 20 the time that old maps stay after the switch, 16 for what is
to be on the disk before it is in force; 450 ms with one. A thousand (two minutes) show no more than these.
"""

import os
from pathlib import Path

import pytest

from embargo.daemon.supervise.generations import KEEP
from faults.conftest import Start
from support.agent import Agent
from support.load import Load, all_accounted, bounded, pids, uses
from tools.rig import Rig, until

pytestmark = pytest.mark.root

COUNT = 60
EACH = 20  # of which one compiles


def mapped(agent: Agent) -> int:
    """The largest number of images that one resolver maps."""
    return max(Path(f"/proc/{pid}/maps").read_text().count("policy.img") for pid in pids(agent, "resolver"))


def descriptors(agent: Agent) -> dict[int, int]:
    """pid → open descriptors, of supervisor and guardian, whose number does not depend on queries."""
    return {pid: use.fds for pid, (kind, use) in uses(agent).items() if kind in ("supervisor", "guardian")}


def test_many_reloads_lose_no_query_and_leak_nothing(faulty: Rig, start: Start) -> None:
    with start() as agent:
        agent.ask("status")
        idle, images = descriptors(agent), mapped(agent)
        with Load(faulty, rate=200) as load:
            load.goes_on()
            before = uses(agent)
            for number in range(COUNT):
                if number % EACH == 0:
                    agent.write_app("qq", {"payment": [f"qq{number}.example"]})
                agent.write_config(policy={"functions": ["payment", "telemetry"][: 1 + number % 2]})
                answer = agent.ask("reload")
                assert answer["ok"], answer
            bounded(before, uses(agent), rss=16 << 20)
        load.holds(failed=False)
        until(lambda: descriptors(agent) == idle, f"as many descriptors as before: {idle}")
        assert mapped(agent) <= images + 1
        assert len(os.listdir(agent.root / "state/generations")) <= KEEP + 2, "the link to the current one, and that one"
        assert agent.ask("status")["generation"] >= COUNT
    all_accounted(agent, load)
    assert sum(event.get("lost", 0) for event in agent.events()) == 0
