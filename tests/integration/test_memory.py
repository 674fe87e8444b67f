"""The guardian's memory on disk: whole or not at all, with what came after the last snapshot."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from embargo import names
from embargo.daemon.guard import memory as memory_
from embargo.daemon.guard.memory import Memory
from embargo.firewall.learning import GATHERING_SECONDS, IN_USE_SECONDS, Book, Reason
from embargo.lists.policy import Class

A, B = b"\xcb\0\x71\1", b"\xcb\0\x71\2"
WHY = Reason(names.from_text("pay.alipay.example"), Class("alipay", "payment"), "alipay/payment.list", 1, "alipay.example")
FREE = names.from_text("free.test")


def recalled(path: Path, now: float = 1000.0) -> tuple[Book, bool]:
    book = Book()
    return book, Memory(str(path), book).recall(now)


def saved(path: Path) -> tuple[Book, Memory]:
    book = Book()
    memory = Memory(str(path), book)
    book.leads(WHY, [A], 300, 0.0)
    memory.save(0.0)
    return book, memory


def test_a_snapshot_is_recalled(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    saved(path)[1].close()
    book, found = recalled(path)
    assert found
    assert book.proving == 0.0
    assert book.reason(A, 1000.0) == WHY
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["learnt.jsonl"]


def test_a_restart_does_not_end_the_time_without_blocking(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    memory = Memory(str(path), Book(proving=500.0))
    memory.save(100.0)
    memory.close()
    found, usable = recalled(path)
    assert usable
    assert found.proving == 1000.0 + 400.0
    assert found.leads(WHY, [A], 300, 1399.0) == []
    assert found.leads(WHY, [A], 300, 1400.0) != []


def test_what_came_after_the_snapshot_is_recalled_too(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    book, memory = saved(path)
    book.leads(WHY, [B], 300, 1.0)
    memory.note([B], 1.0)
    book.answered(FREE, [A], 300, 2.0)
    memory.note([A], 2.0)
    found, _ = recalled(path)  # as after kill -9: nothing was closed
    assert found.reason(B, 1000.0) == WHY
    assert found.reason(A, 1000.0) is None
    assert found.leads(WHY, [A], 300, 1000.0) == []
    memory.close()


def test_without_a_file_or_with_a_broken_one_nothing_is_blocked_for_a_while(tmp_path: Path) -> None:
    for number, content in enumerate(
        ["", "x", "{}\n", '{"version": 2, "saved": 0}\n', "\0" * 100, '{"version":1,"saved":"x"}\n']
    ):
        path = tmp_path / str(number)
        path.write_text(content)
        book, found = recalled(path)
        assert not found, content
        assert book.proving == 1000.0 + GATHERING_SECONDS
    assert not recalled(tmp_path / "nothing")[1]


def test_a_line_that_was_cut_short_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    book, memory = saved(path)
    book.leads(WHY, [B], 300, 0.0)
    memory.note([B], 0.0)
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole) + 1):
        path.write_bytes(whole[:end])
        found, usable = recalled(path)
        assert usable
        assert found.learnt == whole[:end].count(b"\n") - 1, end
    memory.close()


def test_an_old_memory_is_none_and_a_younger_one_ages(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    saved(path)[1].close()
    lines = path.read_text().splitlines()
    for age, found, learnt in ((60, True, 1), (3600, True, 0), (IN_USE_SECONDS + 1, False, 0), (-3600, True, 1)):
        head = json.dumps({"version": 1, "saved": time.time() - age})
        path.write_text("\n".join([head, *lines[1:]]) + "\n")
        book, usable = recalled(path)
        assert (usable, len(list(book.blocked(1000.0)))) == (found, learnt), age
    ((_, _, seconds),) = list(recalled_with(path, lines, 60).blocked(1000.0))
    assert 530 <= seconds <= 541


@pytest.mark.parametrize(
    ("old", "new"), [("alipay.example", "alipay..example"), (FREE.hex(), "ff00"), (WHY.name.hex(), "00ff")]
)
def test_what_no_list_and_no_answer_can_have_said_is_learnt_anew(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "learnt.jsonl"
    book, memory = saved(path)
    book.answered(FREE, [B], 300, 0.0)
    memory.save(0.0)
    memory.close()
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    book, usable = recalled(path)
    assert not usable
    assert book.proving == 1000.0 + GATHERING_SECONDS


def test_a_snapshot_beside_other_work_loses_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_, "ROWS_AT_ONCE", 1)
    asyncio.run(learn_meanwhile(tmp_path / "learnt.jsonl"))


async def learn_meanwhile(path: Path) -> None:
    book, memory = saved(path)
    book.leads(WHY, [bytes([203, 0, 113, number]) for number in range(10, 40)], 300, 0.0)
    saving = asyncio.create_task(memory.save_beside(1.0))
    for _ in range(5):
        await asyncio.sleep(0)
    book.leads(WHY, [B], 300, 2.0)
    memory.note([B], 2.0)
    book.answered(FREE, [A], 300, 2.0)
    memory.note([A], 2.0)
    await saving
    memory.close()
    again, usable = recalled(path)
    assert usable
    assert again.reason(B, 1000.0) == WHY
    assert again.reason(A, 1000.0) is None
    assert again.learnt == 31


def recalled_with(path: Path, lines: list[str], age: float) -> Book:
    path.write_text("\n".join([json.dumps({"version": 1, "saved": time.time() - age}), *lines[1:]]) + "\n")
    return recalled(path)[0]


def test_a_disk_that_is_full_is_told_and_costs_nothing(tmp_path: Path) -> None:
    book, memory = saved(tmp_path / "learnt.jsonl")
    memory.path = str(tmp_path / "nowhere/learnt.jsonl")
    memory.save(1.0)
    assert memory.trouble == "No such file or directory"
    memory.path = str(tmp_path / "learnt.jsonl")
    memory.save(2.0)
    assert memory.trouble == ""
    assert book.learnt == 1
    memory.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".learnt.jsonl").symlink_to(victim)
    book = Book()
    memory = Memory(str(tmp_path / "learnt.jsonl"), book)
    memory.save(0.0)
    assert victim.read_text() == "precious"
    assert memory.trouble


@pytest.mark.parametrize("size", [0, 3])
def test_nothing_is_noted_before_there_is_a_snapshot(tmp_path: Path, size: int) -> None:
    memory = Memory(str(tmp_path / "learnt.jsonl"), Book())
    memory.note([bytes(4)] * size, 0.0)
    assert os.listdir(tmp_path) == []
