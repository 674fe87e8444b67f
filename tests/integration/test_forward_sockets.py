"""A forwarder's sockets to upstreams, which questions share: how many, their errors, and their end."""

import asyncio
import contextlib
import gc
import itertools
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from embargo.daemon.resolve import forward
from embargo.daemon.resolve.forward import Forwarder
from embargo.dns import message
from embargo.dns.questions import Forward
from embargo.dns.upstream import Server
from support.playbook import query
from support.upstream import Late, Upstream, good, right


class Asking:
    """A forwarder of our own, and what becomes of its questions."""

    def __init__(self) -> None:
        self.answered: list[int] = []
        self.overdue: list[tuple[int, str]] = []
        self.failed: list[tuple[int, str]] = []
        self.forwarder = Forwarder(self._complete, self._overdue, self._expire)
        self._token = 0

    def _complete(self, token: int, packet: bytes) -> None:
        self.answered.append(token)

    def _overdue(self, token: int, reason: str) -> None:
        self.overdue.append((token, reason))

    def _expire(self, token: int, reason: str, network: bool) -> None:
        self.failed.append((token, reason))

    def ask(self, port: int, wait: float = 2.0) -> None:
        self._token += 1
        asked = message.parse_query(query(f"n{self._token}.test"))
        self.forwarder.start(Forward(self._token, Server("127.0.0.1", port), asked, True, False, wait))

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def forwarding() -> AsyncIterator[Asking]:
    asking = Asking()
    try:
        yield asking
    finally:
        asking.forwarder.close()


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """This process may open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    gc.collect()  # descriptors that earlier tests have left in cycles must not be closed meanwhile
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(number - len(held)):
            soft_now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft_now + 1, hard))
        for _ in range(min(number, len(held))):
            os.close(held.pop())
        yield
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def one_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance has it that every question takes the same socket."""
    numbers = itertools.cycle(range(1 << 8))
    monkeypatch.setattr(Forwarder, "_draw", lambda _: next(numbers).to_bytes(2))


def test_a_server_is_asked_from_so_many_ports_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "SOCKETS", 4)

    async def run(upstream: Upstream) -> None:
        async with forwarding() as asking:
            for _ in range(forward.MAX_USES):
                asking.ask(upstream.port)
            await asking.until(lambda: len(asking.answered) == forward.MAX_USES)
            assert len(asking.forwarder._sockets) == len({asked.port for asked in upstream.asked}) == 4

    with Upstream(good) as upstream:
        asyncio.run(run(upstream))


@pytest.mark.usefixtures("one_socket")
def test_an_error_of_the_network_ends_all_questions_of_its_socket_and_no_other() -> None:
    """The kernel tells it with the next call, which may be that of another question."""

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, contextlib.ExitStack() as later:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
            async with forwarding() as asking:
                asking.ask(port)
                server.recv(4096)
                server.close()
                asking.ask(port)
                asking.ask(port)
                again = later.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                again.bind(("127.0.0.1", port))
                asking.ask(port)
                wire, sender = again.recvfrom(4096)
                assert len(asking.forwarder._sockets) == 1
                await asking.until(lambda: len(asking.failed) == 3)
                again.sendto(wire[:2] + b"\x81\x80" + wire[4:-11][:6] + bytes(2) + wire[12:-11], sender)
                await asking.until(lambda: asking.answered == [4])
                assert asking.failed == [(1, "connection refused"), (2, "connection refused"), (3, "connection refused")]

    asyncio.run(run())


@pytest.mark.usefixtures("one_socket")
@pytest.mark.parametrize("left", [0, 2])
def test_without_descriptors_there_are_fewer_ports_and_an_answer_to_everything(
    left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another server are given up, and a port that had its time is used on."""
    monkeypatch.setattr(forward, "MAX_USES", 4)

    async def run(first: Upstream, second: Upstream) -> None:
        async with forwarding() as asking:
            asking.ask(second.port)
            await asking.until(lambda: len(asking.answered) == 1)
            with descriptors_left(left):
                for number in range(1, 11):
                    for _ in range(20):
                        asking.ask(first.port)
                    assert 0 < len(asking.forwarder._sockets) <= left + 1
                    await asking.until(lambda: len(asking.answered) == 20 * number + 1)  # noqa: B023 # called at once
            assert asking.failed == []

    with Upstream(good) as first, Upstream(good) as second:
        asyncio.run(run(first, second))


def test_an_idle_forwarder_has_no_socket_and_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_AGE", 0.1)

    async def run(upstream: Upstream) -> None:
        async with forwarding() as asking:
            asking.ask(upstream.port)
            asking.ask(upstream.port, wait=0.05)
            await asking.until(lambda: len(asking.answered) == 2)
            await asking.until(lambda: not asking.forwarder._sockets)
            assert asking.forwarder._timer is None
            asking.ask(upstream.port)
            await asking.until(lambda: len(asking.answered) == 3)

    with Upstream(good) as upstream:
        asyncio.run(run(upstream))


def test_sockets_to_a_server_that_is_no_longer_asked_are_closed_while_others_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_AGE", 0.1)

    async def run(upstream: Upstream, silent: Upstream) -> None:
        async with forwarding() as asking:
            asking.ask(upstream.port)
            await asking.until(lambda: asking.answered == [1])
            async with asyncio.timeout(20):
                while Server("127.0.0.1", upstream.port) in asking.forwarder._pools:
                    asking.ask(silent.port, 0.05)
                    await asyncio.sleep(0.01)

    with Upstream(good) as upstream, Upstream(lambda _: []) as silent:
        asyncio.run(run(upstream, silent))


def test_questions_are_overdue_and_end_in_the_order_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "PATIENCE", 0.5)

    async def run() -> None:
        async with forwarding() as asking:
            for wait in (0.4, 0.2, 0.05, 0.3):
                asking.ask(silent.port, wait)
            await asking.until(lambda: len(asking.overdue) == 4)
            assert [token for token, _ in asking.overdue] == [3, 2, 4, 1]
            await asking.until(lambda: len(asking.failed) == 4)
            assert [token for token, _ in asking.failed] == [3, 2, 4, 1]

    with Upstream(lambda _: []) as silent:
        asyncio.run(run())


def test_an_overdue_question_is_answered_late() -> None:
    async def run(upstream: Upstream) -> None:
        async with forwarding() as asking:
            asking.ask(upstream.port, 0.05)
            await asking.until(lambda: asking.answered == [1])
            assert [token for token, _ in asking.overdue] == [1]
            assert asking.failed == []

    with Upstream(lambda asked: [Late(0.3, right(asked))]) as upstream:
        asyncio.run(run(upstream))


def test_the_queries_that_are_awaited_are_bounded_and_overdue_ones_are_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_AWAITED", 4)

    async def run() -> None:
        async with forwarding() as asking:
            for wait in (30.0, 0.05, 0.05, 30.0):
                asking.ask(silent.port, wait)
            await asking.until(lambda: len(asking.overdue) == 2)
            for _ in range(4):
                asking.ask(silent.port, 30.0)
            await asking.until(lambda: len(asking.failed) == 4)
            assert [token for token, _ in asking.failed] == [2, 3, 1, 4]

    with Upstream(lambda _: []) as silent:
        asyncio.run(run())
