"""The workers, seen from the supervisor: what they count is checked, and who cannot be told of a change is not passed over."""

import asyncio
import errno
import json
import os
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
        {"server": "udp://192.0.2.53:53", "asked": 1, "failed": 0, "healthy": True, "milliseconds": 1.5, "last_error": ""}
    ],
}  # fmt: skip


class Answering(Scripted):
    """It answers every question with this."""

    def __init__(self, root: Path, answer: dict[str, Any]) -> None:
        super().__init__(root)
        self.answer = answer

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().add_reader(self.theirs, self._asked)

    def _asked(self) -> None:
        asked = json.loads(self.theirs.recv(1 << 17))
        self.theirs.send(json.dumps({"id": asked["id"], **self.answer}).encode())

    async def _reap(self) -> None:
        await self.killed.wait()
        asyncio.get_running_loop().remove_reader(self.theirs)
        self.theirs.close()
        self._finish(9)


def workers(root: Path, *children: Scripted) -> Workers:
    made = Workers(lambda: pytest.fail("nobody starts"), lambda child, message: None, lambda child: asyncio.sleep(0), str(root))
    for child in children:
        made.add(child)
    return made


def test_what_a_worker_counts_is_told_as_it_is(tmp_path: Path) -> None:
    async def run() -> None:
        child = Answering(tmp_path, COUNTED)
        await child.start()
        (told,) = await workers(tmp_path, child).stats()
        assert records.tagged(told) == COUNTED
        child.kill()
        await child.ends()

    asyncio.run(run())


def test_no_total_falls_when_a_worker_begins_anew_or_does_not_answer() -> None:
    counts = Counts()
    totals = []
    for said in ({"a": 5, "b": 1}, {"a": 6, "b": 1}, {"a": 2, "b": 1}, {}, {"a": 0}, {"a": 3, "c": 1}):
        counts.update({("hits", name): count for name, count in said.items()})
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


def test_names_that_a_worker_makes_up_are_kept_within_bounds() -> None:
    counts = Counts()
    for number in range(3 * MAX_COUNTS // 1000):
        counts.update({("hits", f"{number}/{n}"): 1 for n in range(1000)})
    assert len(counts.of("hits")) <= MAX_COUNTS + 1000


@pytest.mark.parametrize(
    "changed",
    [
        {"upstreams": None}, {"hits": {"a": "x"}}, {"hits": {"a": -1}}, {"hits": {"a": 1e300}}, {"hits": {"a": 1 << 70}},
        {"hits": {"a\nb": 1}}, {"hits": {"a" * 2000: 1}}, {"counters": []}, {"cache": 7}, {"upstreams": [{}]},
        {"upstreams": ["x"]}, {"upstreams": [COUNTED["upstreams"][0] | {"milliseconds": float("nan")}]},
    ],
)  # fmt: skip
def test_counts_that_cannot_be_are_a_worker_s_end(tmp_path: Path, changed: dict[str, Any]) -> None:
    async def run() -> None:
        child = Answering(tmp_path, COUNTED | changed)
        await child.start()
        assert await workers(tmp_path, child).stats() == []
        assert await child.ends() == 9

    asyncio.run(run())


def test_workers_are_renewed_no_further_when_one_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next one would leave nobody to answer."""
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
        first.killed.set()  # it ends as it was told, and nobody starts it again
        with pytest.raises(ChildError, match="did not start again"):
            await renewing
        assert second.running
        second.kill()
        await second.ends()

    asyncio.run(run())


def test_a_worker_that_starts_is_told_all_of_a_change_that_comes_meanwhile(tmp_path: Path) -> None:
    """What the run before was told last is not what this one has."""
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
def test_a_worker_that_cannot_be_told_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, raised: type[ChildError]
) -> None:
    """Of one that is gone nobody needs to know; one that keeps the old policy refuses the reload."""

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
