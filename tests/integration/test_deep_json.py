"""JSON that is nested too deeply for the parser is an error like any other, wherever it is read."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from embargo import config
from embargo.daemon.ask import client, control
from embargo.daemon.ask.client import ControlError
from embargo.daemon.compile.orders import Check
from embargo.daemon.guard.memory import Memory
from embargo.daemon.process import channel
from embargo.daemon.process.channel import ChannelError
from embargo.daemon.supervise import workshop
from embargo.daemon.supervise.generations import Store
from embargo.daemon.supervise.pausing import Pauses
from embargo.daemon.supervise.workshop import TemporaryError
from embargo.errors import ImageError
from embargo.firewall.learning import Book
from embargo.records import Done

DEEP = "[" * 100_000


def test_a_state_file_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "pauses.json").write_text(DEEP)
    with pytest.raises(ValueError, match="cannot be used: nested too deeply"):
        Pauses(str(tmp_path), lambda: 0.0).load()
    (tmp_path / "learnt.jsonl").write_text(DEEP + "\n")
    assert not Memory(str(tmp_path / "learnt.jsonl"), Book()).recall(0.0)
    store = Store(str(tmp_path))
    store.prepare()
    (Path(store.workshop()) / "report.json").write_text(DEEP)
    with pytest.raises(ImageError, match="nested too deeply"):
        store.load(store.number(f"{tmp_path}/generations/.new"), config.default())


def test_a_row_of_the_memory_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "learnt.jsonl"
    memory = Memory(str(path), Book())
    memory.save(0.0)
    memory.close()
    with path.open("a") as file:
        file.write(DEEP + "\n")
    assert Memory(str(path), Book()).recall(0.0)


def test_a_message_of_another_process_is_refused() -> None:
    ours, theirs = channel.pair((Done,))
    with theirs:
        theirs.send(DEEP.encode())
        with pytest.raises(ChannelError):
            ours.receive()
    ours.close()


def test_a_request_is_answered() -> None:
    with pytest.raises(control._RequestError, match="a request must be one line of JSON with a verb"):
        control._request(DEEP.encode())


def test_an_answer_of_an_agent_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")

    async def answering(reader: Any, writer: Any) -> None:
        await reader.readline()
        writer.write(DEEP.encode() + b"\n")
        writer.close()

    async def run() -> None:
        async with await asyncio.start_unix_server(answering, path):
            await asyncio.to_thread(client.exchange, path, {})

    with pytest.raises(ControlError):
        asyncio.run(run())


def test_an_answer_of_a_compiler_is_temporary_trouble() -> None:
    class Compiler:
        def kill(self) -> None:
            pass

        async def wait(self) -> int:
            return 0

    async def spawn(module: str, fds: list[int]) -> Any:
        os.pwrite(fds[1], DEEP.encode(), 0)
        return Compiler()

    with pytest.raises(TemporaryError, match="it ended with status 0"):
        asyncio.run(workshop.run(spawn, Check("", "", ())))  # type: ignore[arg-type] # a Spawn is more than this function
