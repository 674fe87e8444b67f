"""Workers as the supervisor sees them: their counters are checked, and a change that does not reach one of them fails."""

import asyncio
import errno
import json
import os
import select
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embargo import records
from embargo.daemon.process.channel import Channel
from embargo.daemon.process.child import MAX_COUNTS, ChildError, ChildGone, Counts
from embargo.daemon.resolve.orders import Adopt, Judgement, Settings
from embargo.daemon.supervise import workers as workers_
from embargo.daemon.supervise.workers import Workers
from embargo.lists.policy import Switchboard
from support.child import Scripted
from support.worker import settings

COUNTED: dict[str, Any] = {
    "op": "Counted", "counters": {"queries_udp": 3}, "hits": {"alipay/payment": 2}, "cache": {"hits": 1, "entries": 4},
    "upstreams": [
        {"server": "udp://192.0.2.53:53", "asked": 1, "failed": 0, "healthy": True, "milliseconds": 1.5, "last_error": "",
     "plain": False}
    ],
}  # fmt: skip


class Answering(Scripted):
    """A worker that answers every order with the same record."""

    def __init__(self, root: Path, answer: dict[str, Any]) -> None:
        super().__init__(root)
        self.answer = answer

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_reader(self.theirs, self._answer_order)

    def _answer_order(self) -> None:
        order = json.loads(self.theirs.recv(1 << 17))
        self.theirs.send(json.dumps({"id": order["id"], **self.answer}).encode())

    async def _reap(self) -> None:
        await self.killed.wait()
        asyncio.get_running_loop().remove_reader(self.theirs)
        self.theirs.close()
        self._finish(9)


def workers(root: Path, *children: Scripted) -> Workers:
    made = Workers(
        lambda: pytest.fail("no worker is to start"), lambda child, told, lost: None, lambda child: asyncio.sleep(0), str(root)
    )
    for child in children:
        made.add(child)
    return made


def test_the_counters_of_a_worker_are_returned_unchanged(tmp_path: Path) -> None:
    async def run() -> None:
        child = Answering(tmp_path, COUNTED)
        await child.start()
        (counted,) = await workers(tmp_path, child).stats()
        assert records.tagged(counted) == COUNTED
        child.kill()
        await child.ends()

    asyncio.run(run())


def test_no_total_falls_when_a_worker_restarts_or_does_not_answer() -> None:
    counts = Counts()
    totals = []
    for report in ({"a": 5, "b": 1}, {"a": 6, "b": 1}, {"a": 2, "b": 1}, {}, {"a": 0}, {"a": 3, "c": 1}):
        counts.update({("hits", name): count for name, count in report.items()})
        totals.append(counts.of("hits"))
    assert totals == [
        {"a": 5, "b": 1},
        {"a": 6, "b": 1},
        {"a": 8, "b": 1},
        {"a": 8, "b": 1},
        {"a": 8, "b": 1},
        {"a": 11, "b": 1, "c": 1},
    ]
    assert not counts.of("asked")


def test_names_invented_by_a_worker_are_stored_up_to_a_limit() -> None:
    counts = Counts()
    for number in range(3 * MAX_COUNTS // 1000):
        counts.update({("hits", f"{number}/{n}"): 1 for n in range(1000)})
    assert len(counts.of("hits")) <= MAX_COUNTS + 1000


@pytest.mark.parametrize(
    "changed",
    [
        {"upstreams": None}, {"hits": {"a": "x"}}, {"hits": {"a": -1}}, {"hits": {"a": 1e300}}, {"hits": {"a": 1 << 70}},
        {"hits": {"a\nb": 1}}, {"hits": {"a" * 2000: 1}}, {"counters": []}, {"cache": 7}, {"upstreams": [{}]},
        {"upstreams": ["x"]}, {"upstreams": [COUNTED["upstreams"][0] | {"last_error": "\x1b[2J"}]},
        {"upstreams": [COUNTED["upstreams"][0] | {"milliseconds": float("nan")}]},
    ],
)  # fmt: skip
def test_a_worker_with_impossible_counters_is_killed(tmp_path: Path, changed: dict[str, Any]) -> None:
    async def run() -> None:
        child = Answering(tmp_path, COUNTED | changed)
        await child.start()
        assert await workers(tmp_path, child).stats() == []
        assert await child.ends() == 9

    asyncio.run(run())


def test_the_other_workers_are_not_restarted_when_one_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no worker might be left to answer queries."""
    monkeypatch.setattr(workers_, "START_SECONDS", 0.05)

    async def run() -> None:
        first, second = Answering(tmp_path / "1", {"op": "Done"}), Answering(tmp_path / "2", {"op": "Done"})
        made = workers(tmp_path, first, second)
        made._settings = [settings(), settings()]
        for child in (first, second):
            Path(child._page).parent.mkdir()
            await child.start()
        renewing = asyncio.create_task(made.renew())
        await asyncio.sleep(0.05)
        first.killed.set()  # it ends as ordered, and is not restarted
        with pytest.raises(ChildError, match="did not start again"):
            await renewing
        assert second.running
        second.kill()
        await second.ends()

    asyncio.run(run())


def test_a_starting_worker_gets_all_settings_of_a_change_that_comes_meanwhile(tmp_path: Path) -> None:
    """It does not have the settings that the previous process had."""
    generation: Any = SimpleNamespace(number=7, fd=0, exempt=(), board=Switchboard(()))
    old, new = settings(upstream=["192.0.2.1"]), settings(upstream=["192.0.2.2"])

    async def run() -> None:
        child = Scripted(tmp_path)
        made = workers(tmp_path, child)
        made._in_force = lambda: (generation, old)
        made._settings = [new]
        starting = asyncio.create_task(made._begin(0))
        await asyncio.sleep(0.01)
        changing = asyncio.create_task(made._adopt(0, generation, new))
        await asyncio.sleep(0.01)
        orders = [json.loads(child.theirs.recv(1 << 17)) for _ in range(2)]
        found = [(order["op"], records.decode(Settings, order["settings"])) for order in orders]
        assert found == [("Start", old), ("Adopt", new)]
        for order in orders:
            child.theirs.send(json.dumps({"op": "Done", "id": order["id"]}).encode())
        await asyncio.gather(starting, changing)
        assert made._settings == [new]
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [(errno.EMFILE, ChildError), (errno.ENOBUFS, ChildError), (errno.ETOOMANYREFS, ChildError), (errno.EPIPE, ChildGone)],
)
def test_an_order_that_cannot_be_sent_to_a_running_worker_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, raised: type[ChildError]
) -> None:
    """A worker that has ended needs no order; one that would keep the old policy makes the reload fail."""

    def refused(self: Channel, record: object, fds: Sequence[int] = (), number: int | None = None) -> None:
        raise OSError(refusal, os.strerror(refusal))

    async def run() -> None:
        child = Scripted(tmp_path)
        await child.start()
        monkeypatch.setattr(Channel, "send", refused)
        with pytest.raises(ChildError) as caught:
            await child.ask(Adopt(Judgement(1, Switchboard(()), ()), None))
        assert caught.type is raised
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


def test_a_worker_that_refuses_a_change_is_sent_all_settings_next(tmp_path: Path) -> None:
    """It may have taken a part of what it refused."""
    generation: Any = SimpleNamespace(number=7, fd=0, exempt=(), board=Switchboard(()))
    had = settings(upstream=["192.0.2.1"])

    async def run() -> None:
        child = Scripted(tmp_path)
        made = workers(tmp_path, child)
        await child.start()
        made._settings = [had]
        for reply, wanted in (({"op": "Failed", "reason": "no"}, None), ({"op": "Done"}, had), ({"op": "Done"}, None)):
            changing = asyncio.create_task(made.adopt(generation, had))
            await asyncio.sleep(0)
            while not select.select([child.theirs], [], [], 0)[0]:
                await asyncio.sleep(0.001)
            order = json.loads(child.theirs.recv(1 << 17))
            sent = order.get("settings")
            assert (records.decode(Settings, sent) if sent is not None else None) == wanted
            child.theirs.send(json.dumps({"id": order["id"], **reply}).encode())
            if reply["op"] == "Failed":
                with pytest.raises(ChildError, match="resolver 0: no"):
                    await changing
            else:
                await changing
        child.kill()
        await child.ends()
        child.theirs.close()

    asyncio.run(run())


def test_the_text_of_a_refusal_is_printable(tmp_path: Path) -> None:
    """It goes to a terminal and to the log, and comes from a process without privileges."""

    async def run() -> None:
        child = Answering(tmp_path, {"op": "Failed", "reason": "\x1b]0;owned\x07\n2026 forged \x9b2J"})
        await child.start()
        with pytest.raises(ChildError) as caught:
            await child.ask(Adopt(Judgement(1, Switchboard(()), ()), None))
        assert str(caught.value).isprintable()
        child.kill()
        await child.ends()

    asyncio.run(run())
