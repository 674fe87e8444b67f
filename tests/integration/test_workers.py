"""The workers, seen from the supervisor: what they count is checked."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from embargo.daemon.workers import Workers
from support.child import Scripted

COUNTED: dict[str, Any] = {
    "op": "stats", "counters": {"queries_udp": 3}, "hits": {"alipay/payment": 2}, "cache": {"hits": 1, "entries": 4},
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
    made._children += children
    return made


def test_what_a_worker_counts_is_told_as_it_is(tmp_path: Path) -> None:
    async def run() -> None:
        child = Answering(tmp_path, COUNTED)
        await child.start()
        (told,) = await workers(tmp_path, child).stats()
        assert told == {"id": 1, **COUNTED}
        child.kill()
        await child.ends()

    asyncio.run(run())


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
