"""Lists that are written while they are read: a half-written list never takes effect."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.conftest import Start
from support.agent import Agent
from support.load import NAME, Load, all_accounted, bounded, uses
from tools.rig import Rig, until

pytestmark = pytest.mark.root

SECONDS = 2.0
PAUSE = 0.01
Write = Callable[[Path, str], None]


def by_rename(path: Path, text: str) -> None:
    temporary = path.with_name(".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def in_place(path: Path, text: str) -> None:
    """Write a file in pieces: at first it is empty, then half complete; the entry that the test needs comes last."""
    with open(path, "w") as file:
        time.sleep(PAUSE / 4)
        file.write(text[: len(text) // 2])
        file.flush()
        time.sleep(PAUSE / 4)
        file.write(text[len(text) // 2 :])


def text(number: int) -> str:
    return "".join(f"only{number}-{n}.test\n" for n in range(50)) + f"number{number}.test\n{NAME}\n"


@pytest.mark.parametrize("write", [by_rename, in_place])
def test_a_list_is_written_a_hundred_times_a_second(faulty: Rig, start: Start, write: Write) -> None:
    with start() as agent:
        path = agent.root / "apps/alipay/payment.list"
        before = uses(agent)
        with Load(faulty, probes=False) as load:
            deadline, number = time.monotonic() + SECONDS, 0
            asked = threading.Thread(target=reload_until, args=(agent, deadline))  # at once, not when it has settled
            asked.start()
            while time.monotonic() < deadline:
                number += 1
                write(path, text(number))
                time.sleep(PAUSE)
            asked.join()
            until(lambda: agent.ask("why", subject=f"number{number}.test")["verdict"] == "blocked", "the last one is in force")
        load.holds(failed=False)
        bounded(before, uses(agent))
        assert agent.ask("why", subject=f"number{number - 1}.test")["verdict"] != "blocked", "and nothing else"
    all_accounted(agent, load)


def reload_until(agent: Agent, deadline: float) -> None:
    while time.monotonic() < deadline:
        agent.ask("reload")


#: writes the second file's content to the first one in pieces. Before others: a pause of a quarter of a second is an end
WRITER = """
import sys, time
content = open(sys.argv[2]).read()
with open(sys.argv[1], "w") as file:
    for at in range(0, len(content), 20):
        file.write(content[at : at + 20])
        file.flush()
        if not at:
            print("begun", flush=True)
        time.sleep(0.02)
"""


def test_a_half_written_list_takes_effect_only_when_it_is_complete(faulty: Rig, start: Start) -> None:
    with start() as agent:
        path, whole = agent.root / "apps/alipay/payment.list", agent.root / "whole"
        whole.write_text(text(0))
        command = ["nice", "-n", "-15", sys.executable, "-S", "-c", WRITER, str(path), str(whole)]
        with Load(faulty, probes=False) as load, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            agent.ask("reload")
            assert writer.wait(60) == 0
            assert agent.ask("reload")["ok"]
        load.holds(failed=False)
    all_accounted(agent, load)
