"""A full or read-only disk: queries are answered, losses are counted, the policy stays in force, and the agent recovers."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embargo import names
from embargo.daemon.ask import control
from embargo.daemon.guard.memory import Memory
from embargo.daemon.log.journal import Journal
from embargo.firewall.learning import Book, Reason
from embargo.lists.policy import Class
from faults.conftest import Start
from support.agent import Agent
from support.load import Load, all_accounted, bounded, supervisor, uses
from tools.rig import Rig, until

pytestmark = pytest.mark.root

FULL = "No space left on device"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory on a small file system of its own."""
    made = tmp_path / "small"
    made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "embargo-test", str(made)], check=True)
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made)], check=True)


def fill(directory: Path) -> None:
    """Fill the file system."""
    with open(directory / "filler", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def empty(directory: Path) -> None:
    (directory / "filler").unlink()


def lost(agent: Agent) -> int:
    return int(agent.ask("status")["events"]["lost"])


def on(small: Path) -> dict[str, dict[str, str]]:
    return {"log": {"events": str(small / "events.jsonl")}, "state": {"dir": str(small / "state")}}


def refused(agent: Agent, reason: str, generation: int) -> None:
    answer = agent.ask("reload")
    assert not answer["ok"]
    assert reason in answer["errors"][0], answer
    assert agent.ask("status")["generation"] == generation


def test_the_agent_works_on_a_full_disk_and_recovers(faulty: Rig, start: Start, small: Path) -> None:
    with start(**on(small)) as agent:
        before, generation = uses(agent), agent.ask("status")["generation"]
        with Load(faulty) as load:
            fill(small)
            agent.write_app("qq", {"payment": ["qq.example"]})
            refused(agent, FULL, generation)
            agent.write_config(policy={"functions": ["payment"]})  # which needs no compiler, and a report all the same
            refused(agent, FULL, generation)
            answer = agent.ask("block", entries=["more.test"])
            assert FULL in str(answer), answer
            until(lambda: lost(agent) > 0, "blocks are counted as lost", 30)
            assert f"cannot write events to {small}/events.jsonl: {FULL}" in agent.errors
            load.goes_on()
            empty(small)
            until(lambda: agent.ask("status")["generation"] > generation, "the change is in force by itself", 30)
            assert not agent.ask("block", entries=["after.test"])["errors"]
        load.holds()
        bounded(before, uses(agent))
        assert (small / "state/local/block.list").read_text().count("test") == 1, "what was refused is not in force later"
    agent.root = small
    all_accounted(agent, load)


def test_the_agent_starts_on_a_full_disk(faulty: Rig, start: Start, small: Path) -> None:
    """With the last generation, and an incomplete line at the end of the event log."""
    with start(**on(small)) as agent:
        generation = agent.ask("status")["generation"]
    with open(small / "events.jsonl", "ab") as log:
        room = 4096 - log.tell() % 4096  # of a page that is there already
        log.write(b'{"event":"x"}\n' * (room // 14) + b'{"half........'[: room % 14])
        assert log.tell() % 4096 == 0
    assert not (small / "events.jsonl").read_text().endswith("\n")
    fill(small)
    agent.start()
    try:
        assert agent.ask("status")["generation"] == generation
        with Load(faulty) as load:
            load.goes_on()
        load.holds()
        empty(small)
    finally:
        agent.stop()
    agent.root = small
    lines = (small / "events.jsonl").read_text().splitlines()
    assert len([line for line in lines if not line.endswith("}")]) == 1, "nothing was appended to it"


def seen_by(agent: Agent, *command: str) -> None:
    """Mount something in the mount namespace of the agent (`ip netns exec` creates one), which ends with it."""
    subprocess.run(["nsenter", f"--mount=/proc/{supervisor(agent)}/ns/mnt", *command], check=True, capture_output=True)


def test_the_agent_works_on_a_disk_that_becomes_read_only(faulty: Rig, start: Start, small: Path) -> None:
    with start(
        **on(small),
    ) as agent:
        generation = agent.ask("status")["generation"]
        with Load(faulty) as load:
            seen_by(agent, "mount", "--bind", "-o", "ro", str(small), str(small))
            agent.write_app("qq", {"payment": ["qq.example"]})
            refused(agent, "Read-only file system", generation)
            assert "Read-only" in str(agent.ask("block", entries=["more.test"]))
            load.goes_on()
            seen_by(agent, "umount", str(small))
            until(lambda: agent.ask("status")["generation"] > generation, "the change is in force by itself", 30)
        load.holds()
    agent.root = small
    all_accounted(agent, load)


def test_addresses_learnt_on_a_full_disk_are_saved_when_there_is_space(small: Path) -> None:
    why = Reason(names.from_text("pay.alipay.example"), Class("alipay", "payment"), "alipay/payment.list", 1, "alipay.example")
    book = Book()
    memory = Memory(str(small / "learnt.jsonl"), book)
    memory.save(0.0)
    fill(small)
    for number in range(300):  # more than any buffer holds
        address = bytes([203, 0, 113, number % 250])
        book.leads(why, [address], 300, 1.0)
        memory.note([address], 1.0)
    memory.save(2.0)
    assert memory.trouble == FULL
    empty(small)
    memory.save(3.0)
    assert memory.trouble == ""
    address = bytes([203, 0, 113, 255])
    book.leads(why, [address], 300, 4.0)
    memory.note([address], 4.0)
    memory.close()
    found = Book()
    assert Memory(str(small / "learnt.jsonl"), found).recall(5.0)
    assert found.learnt == book.learnt == 251


def test_if_there_is_no_space_for_one_list_none_is_replaced(small: Path) -> None:
    paths = {name: str(small / f"{name}.list") for name in ("block", "allow")}
    control.write_lists(paths, {"block": ["moved.test"], "allow": []})
    fill(small)
    with pytest.raises(OSError, match=FULL):
        control.write_lists(paths, {"block": [], "allow": ["moved.test"] * 1000})
    assert (small / "block.list").read_text() == "moved.test\n"
    empty(small)
    control.write_lists(paths, {"block": [], "allow": ["moved.test"]})
    assert [(small / f"{name}.list").read_text() for name in paths] == ["", "moved.test\n"]


def test_an_event_log_on_a_full_disk_rotates_and_counts_its_losses(small: Path) -> None:
    journal = Journal(str(small / "events.jsonl"), max_bytes=8192, keep=2)
    fill(small)
    for number in range(400):
        journal.event({"event": "start", "number": number})
    empty(small)
    journal.event({"event": "stop"})
    journal.close()
    text = "".join(path.read_text() for path in sorted(small.glob("events.jsonl*")))
    assert f'"lost":{journal.lost}' in text
    assert os.path.exists(small / "events.jsonl")
