"""Tries of one question on several connections of a pipeline, when the address of this machine changes."""

import asyncio

import pytest

from embargo import names
from embargo.daemon.resolve import pipeline
from embargo.daemon.resolve.connection import Connection
from embargo.daemon.resolve.pipeline import Pipelines
from embargo.dns import message
from embargo.dns.message import Query
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server

SERVER = Server("192.0.2.53", 53, "tcp")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The address of this machine, in a list of one. No connection is ever made."""
    found = ["192.0.2.1"]

    async def never(_: Pipelines, _connection: Connection) -> None:
        pass

    monkeypatch.setattr(pipeline, "source", lambda _: found[0])
    monkeypatch.setattr(Pipelines, "_open", never)
    return found


@pytest.mark.parametrize("first", [0, 1])
def test_the_later_try_of_a_question_goes_on_when_both_come_to_one_connection(
    address: list[str], monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """The earlier one has ended then, and must not be reported as overdue."""
    overdue: list[int] = []
    expired: list[int] = []
    one, other = (message.own_query(names.from_text(name), message.A) for name in ("a.test", "b.test"))

    async def run() -> None:
        asked = Pipelines(lambda *_: None, lambda token, _: overdue.append(token), lambda token, *_: expired.append(token))

        def start(token: int, query: Query) -> None:
            asked.start(Forward(token, SERVER, query, True, True, 600.0))

        monkeypatch.setattr(pipeline, "SHARE", 1)
        start(1, other)
        start(2, one)
        start(3, one)
        (pool,) = asked._pools.values()
        assert [[each.forward.token for each in held.queries.values()] for held in pool.connections] == [[1, 3], [2]]
        if first:
            pool.connections.reverse()
        late = next(each for held in pool.connections for each in held.queries.values() if each.forward.token == 2)
        monkeypatch.setattr(pipeline, "SHARE", 64)
        address[0] = "192.0.2.2"
        asked._late(late)
        (connection,) = pool.connections
        assert sorted(each.forward.token for each in connection.queries.values()) == [1, 3]
        assert (expired, overdue) == ([2], [])
        asked.close()

    asyncio.run(run())
