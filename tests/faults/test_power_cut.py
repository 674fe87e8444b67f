"""The power is cut while state is written: a new start always finds a whole state, the old one or the new one.

A process that writes is killed at random moments, which leaves the order of its steps; what was not synced may then be cut
short anywhere, which is done to the files afterwards.
"""

import contextlib
import functools
import itertools
import json
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from embargo import config, names, records
from embargo.daemon.ask import control
from embargo.daemon.compile import compiler, sources
from embargo.daemon.guard.memory import Memory
from embargo.daemon.host import whole
from embargo.daemon.log.journal import Journal
from embargo.daemon.supervise.generations import IMAGE, REPORT, Store
from embargo.errors import ImageError
from embargo.firewall.learning import Book, Reason
from embargo.lists import image, lists, policy
from embargo.lists.image import Image
from embargo.lists.policy import Class, Selection
from support.agent import running
from support.playbook import listed

CUTS = 200
SETTINGS = config.default()
WHY = Reason(names.from_text("pay.alipay.example"), Class("alipay", "payment"), "alipay/payment.list", 1, "alipay.example")

Writer = Callable[[Path], None]  # writes for ever


def cut(writer: Writer, directory: Path, check: Callable[[Path, random.Random], None]) -> None:
    """Kill the writer CUTS times at a random moment, check what it leaves, and let it continue from there."""
    chance = random.Random(11)
    fork = multiprocessing.get_context("fork")
    for _ in range(CUTS):
        process = fork.Process(target=writer, args=(directory,))
        process.start()
        assert process.pid is not None
        time.sleep(chance.uniform(0.002, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it wrote until it was killed"
        check(directory, chance)


# ── generations ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def octets(number: int) -> tuple[bytes, bytes]:
    """An image of so many names, and its report."""
    apps = [
        policy.App("alipay", "Alipay", default=True, lists=(listed("\n".join(f"n{n}.test" for n in range(1 + number % 50))),))
    ]
    combined = policy.combine(apps, (), Selection())
    board = policy.select(apps, combined.classes, Selection())
    made = compiler.report(SETTINGS, sources.Loaded(tuple(apps), (), {}, ()), Image(data := image.encode(combined)), board)
    return data, json.dumps(records.encode(made)).encode()


@functools.cache
def made() -> list[tuple[bytes, bytes]]:
    return [octets(number) for number in range(6)]


def write_generations(directory: Path) -> None:
    store = Store(str(directory))
    store.prepare()
    for number in itertools.count():
        workshop = store.workshop()
        for name, data in zip((IMAGE, REPORT), made()[number % 6], strict=True):
            whole.fill(whole.new(f"{workshop}/{name}"), data)
        store.make_current(store.number(workshop))
        store.prune()


def test_generations_are_complete_after_a_power_cut(tmp_path: Path) -> None:
    seen = 0

    def check(directory: Path, chance: random.Random) -> None:
        nonlocal seen
        store = Store(str(directory))
        store.prepare()
        number = store.current()
        assert number >= seen, "what was in force is not forgotten"
        seen = number
        if number:
            generation = store.load(number, SETTINGS)
            assert len(generation.image) == generation.report.names
            generation.close()
        # an interrupted start after that one finds the same
        assert not [name for name in os.listdir(directory / "generations") if name.startswith(".")]

    made()  # before the writers are forked: each of them begins to write at once
    cut(write_generations, tmp_path, check)
    assert seen > CUTS // 10


def test_a_truncated_generation_is_refused(tmp_path: Path) -> None:
    """At every length of either file, so that a start compiles again and never uses half a policy."""
    store = Store(str(tmp_path))
    store.prepare()
    workshop = store.workshop()
    for name, data in zip((IMAGE, REPORT), octets(20), strict=True):
        whole.fill(whole.new(f"{workshop}/{name}"), data)
    number = store.number(workshop)
    store.make_current(number)
    chance = random.Random(12)
    for name in (IMAGE, REPORT):
        path = tmp_path / f"generations/{number:06}/{name}"
        content = path.read_bytes()
        for length in {0, 1, len(content) - 1, *chance.choices(range(len(content)), k=CUTS)}:
            path.write_bytes(content[:length])
            with pytest.raises(ImageError):
                store.load(number, SETTINGS)
            path.write_bytes(content[:length] + bytes(len(content) - length))  # the length was written, the octets were not
            with contextlib.suppress(ImageError):
                generation = store.load(number, SETTINGS)
                generation.close()
                assert content == path.read_bytes()
        path.write_bytes(content)
    store.load(number, SETTINGS).close()


# ── what was learnt ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_memory(directory: Path) -> None:
    book = Book()
    memory = Memory(str(directory / "learnt.jsonl"), book)
    memory.recall(0.0)
    for number in itertools.count(os.getpid()):
        if number % 20 == 0:
            memory.save(1.0)
        address = bytes([203, 0, 113, number % 250])
        book.leads(WHY, [address], 300, 1.0)
        memory.note([address], 1.0)


def test_learnt_addresses_are_consistent_after_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    first = Memory(str(path), Book())
    first.save(0.0)
    first.close()
    known = 0

    def check(directory: Path, chance: random.Random) -> None:
        nonlocal known
        book = Book()
        assert Memory(str(path), book).recall(1.0), "it is usable"
        assert book.learnt >= known, "what was learnt is not forgotten"
        known = book.learnt
        content = path.read_bytes()
        head = content.index(b"\n") + 1
        path.write_bytes(content[: chance.randint(head, len(content))])  # notes are not synced
        shorter = Book()
        assert Memory(str(path), shorter).recall(1.0)
        assert shorter.learnt <= book.learnt
        path.write_bytes(content)

    cut(write_memory, tmp_path, check)
    assert known > 100


# ── the local lists ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_local(directory: Path) -> None:
    paths = {name: str(directory / f"{name}.list") for name in ("block", "allow")}
    for number in itertools.count():
        lines = [f"n{number}-{n}.test" for n in range(200)]
        control.write_lists(paths, {"block": lines, "allow": lines})


def test_local_lists_are_complete_after_a_power_cut(tmp_path: Path) -> None:
    def check(directory: Path, chance: random.Random) -> None:
        for path in filter(Path.exists, (directory / "block.list", directory / "allow.list")):
            lines = path.read_text().splitlines()
            assert len(lines) == 200
            assert len({line.partition("-")[0] for line in lines}) == 1, "of one writing"
            assert path.stat().st_mode & 0o777 == 0o644
            assert not lists.parse(
                path.read_bytes(), file=str(path), source=listed("x.test").source, guard=lists.Guard()
            ).problems

    cut(write_local, tmp_path, check)
    assert (tmp_path / "block.list").exists()
    assert (tmp_path / "allow.list").exists()


# ── the event log ────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_journal(directory: Path) -> None:
    journal = Journal(str(directory / "events.jsonl"), max_bytes=20_000, keep=3)
    for number in itertools.count():
        journal.write([{"event": "dns", "number": number, "text": "x" * 50}])


def test_the_event_log_is_readable_after_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def check(directory: Path, chance: random.Random) -> None:
        for each in directory.iterdir():
            *lines, rest = each.read_bytes().split(b"\n")
            for line in lines:
                json.loads(line)
            # the kernel looks for a kill at each page of a write: a line that lies across two may be cut there
            assert not rest or (each == path and each.stat().st_size % mmap.PAGESIZE == 0), "nothing else is half"
        with open(path, "ab+") as file:  # nothing of it is synced
            file.truncate(chance.randint(0, file.tell()))
        journal = Journal(str(path), max_bytes=20_000, keep=3)
        journal.event({"event": "start"})
        journal.close()
        *before, last = path.read_bytes().splitlines()
        assert json.loads(last)["event"] == "start", "what comes after half a line is whole"
        assert len([line for line in before if not line.endswith(b"}")]) <= 1
        for each in directory.iterdir():  # the half line may have been rotated
            whole = [line for line in each.read_bytes().splitlines(keepends=True) if line.endswith(b"}\n")]
            each.write_bytes(b"".join(whole))

    cut(write_journal, tmp_path, check)


# ── all of it together ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_agent_starts_after_a_power_cut(tmp_path: Path) -> None:
    """Truncate the newest files at random, first unsynced ones, then synced ones too: it starts and blocks."""
    with running(tmp_path / "agent") as agent:
        agent.ask("block", entries=["mine.test"])
        assert agent.blocked("alipay.example")
    saved = tmp_path / "saved"
    shutil.copytree(agent.root, saved, symlinks=True)
    chance = random.Random(13)
    for _ in range(6):
        for path in [*(agent.root / "state/generations").glob("0*/*"), agent.root / "events.jsonl"]:
            os.truncate(path, chance.randint(0, path.stat().st_size))
        for extra in ("state/generations/.new", "state/generations/.current"):
            (agent.root / extra).mkdir()
        agent.start()
        try:
            assert agent.blocked("alipay.example")
            assert agent.blocked("mine.test")
        finally:
            agent.stop()
        shutil.rmtree(agent.root)
        shutil.copytree(saved, agent.root, symlinks=True)
