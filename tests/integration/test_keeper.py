"""Keepers and the end of an agent: a child comes back whatever goes wrong at its start, and not at all once the agent stops."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from embargo.daemon.supervise import keeper as keeper_
from embargo.daemon.supervise.keeper import Keeper
from embargo.daemon.supervise.supervisor import Supervisor


class Dying:
    """A child that has always ended already."""

    name = "resolver 0"

    def __init__(self) -> None:
        self.kills = 0

    async def wait(self) -> int:
        await asyncio.sleep(0)
        return 1

    def kill(self) -> None:
        self.kills += 1

    async def stop(self, order: Any) -> bool:
        return True


@pytest.mark.parametrize("error", [RuntimeError("unexpected"), OSError(24, "no descriptor"), KeyError("x")])
def test_a_keeper_survives_whatever_a_start_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(keeper_, "FIRST_DELAY", 0.0)
    child: Any = Dying()
    begun = asyncio.Event()
    starts = 0

    async def begin() -> None:
        nonlocal starts
        starts += 1
        if 1 < starts < 4:
            raise error
        if starts == 5:
            begun.set()

    async def run() -> None:
        keeper = Keeper(child, begin)
        await keeper.start()
        await asyncio.wait_for(begun.wait(), 10.0)
        assert child.kills == 2, "what was half started is killed"
        assert keeper.restarts >= 4
        await keeper.stop(None)  # type: ignore[arg-type] # the child takes any order

    asyncio.run(run())


def test_nothing_is_restarted_once_the_agent_stops() -> None:
    """The guardian's keeper is released before anything waits: a guardian that ends meanwhile must stay away."""
    done: list[str] = []

    def noting(what: str) -> Any:
        def note(*arguments: Any) -> None:
            done.append(what)

        return note

    async def stopping(*arguments: Any) -> None:
        done.append("stopped")

    agent: Any = SimpleNamespace(
        guarding=SimpleNamespace(release=noting("released"), stop=stopping), _tasks=(), _failure=None, generation=None,
        follower=SimpleNamespace(close=noting("closed")), workers=SimpleNamespace(stop=stopping),
        sockets=SimpleNamespace(close=noting("closed")), journal=SimpleNamespace(close=noting("closed")),
        _rules_that_stay=lambda: "keep",
    )  # fmt: skip
    asyncio.run(Supervisor._end(agent))
    assert done[0] == "released"
    assert done.count("stopped") == 2
