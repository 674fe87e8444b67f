"""Clients take turns: a flood of one, over UDP or TCP, of whatever queries, costs others a bounded part of a second."""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from embargo.daemon.process.outbox import Outbox
from embargo.daemon.resolve import clients, intake, stream
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.clients import Clients
from embargo.dns.cache import Cache
from support import twins
from support.playbook import query, rules
from support.worker import framed

BLOCKED, FREE = query("alipay.example", edns=False), query("free.test", edns=False)
NOW, WALL = 1000.0, 1_700_000_000.25


class Front:
    """Clients of an intake, and an engine that notes whom it answers."""

    def __init__(self) -> None:
        attempts = Attempts(Outbox(lambda *_: True, None))
        self.intake = intake.make(Cache(), attempts)
        judgement = rules("alipay.example", acl="127.0.0.0/8")
        attempts.adopt(judgement, names=True)
        self.intake.adopt(judgement)
        self.handled: list[str] = []
        self.counters: Counter[str] = Counter()
        self.clients = Clients(self.intake, None, lambda _: True, self._handle, self.counters)
        self.udp, self.tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        for sock in (self.udp, self.tcp):
            sock.bind(("127.0.0.1", 0))
        self.clients.listen([self.udp], [self.tcp])
        self._socks: list[socket.socket] = []

    def _handle(self, _packet: bytes, client: str, peer: object, _udp: bool) -> bool:
        self.handled.append(client)
        if isinstance(peer, stream.Connection):
            peer.send(b"answer")
        return True

    def connect(self, client: str, *, tcp: bool) -> socket.socket:
        """A client at this address, which is connected."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        self._socks.append(sock)
        sock.bind((client, 0))
        sock.connect((self.tcp if tcp else self.udp).getsockname())
        sock.setblocking(False)
        return sock

    async def accepted(self, count: int) -> None:
        """Wait until there are so many connections."""
        async with asyncio.timeout(20):
            while len(self.clients.streams.connections) < count:
                await asyncio.sleep(0.001)

    def close(self) -> None:
        self.clients.stop_listening()
        self.clients.close()
        for sock in self._socks:
            sock.close()


@pytest.fixture(params=["compiled", "python"])
def front(request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, Front]]:
    """Clients, and the runner of their loop. Between two calls of the runner the loop stands still."""

    async def made() -> Front:
        return Front()

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        if request.param == "python":
            twins.without(patch)
        one = runner.run(made())
        yield runner, one

        async def close() -> None:
            one.close()

        runner.run(close())


def test_a_flood_over_many_connections_is_taken_in_bounded_turns(front: tuple[asyncio.Runner, Front]) -> None:
    """45 connections with 128 KiB of queries each stopped DNS for everybody for seconds."""
    runner, one = front

    async def run() -> list[int]:
        flooding = [one.connect("127.0.0.13", tcp=True) for _ in range(stream.PER_CLIENT)]
        other = one.connect("127.0.0.14", tcp=True)
        await one.accepted(stream.PER_CLIENT + 1)
        asyncio.get_running_loop().remove_reader(one.clients.streams.epoll.fileno())  # each turn is taken below
        for sock in flooding:
            with contextlib.suppress(BlockingIOError):
                sock.send(framed(BLOCKED) * (131_072 // len(framed(BLOCKED))))
        other.send(framed(BLOCKED))
        turns = []
        while True:
            turns.append(one.intake.take_streams(NOW, WALL).streamed)
            with contextlib.suppress(BlockingIOError):
                assert other.recv(4096)
                return turns

    turns = runner.run(run())
    assert len(turns) <= 1 + (stream.PER_CLIENT + 1) // intake.STREAMS
    assert max(turns) <= 1 + intake.TURNS * intake.READ // len(framed(BLOCKED))


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_who_asks_once_does_not_wait_for_the_queries_of_another(
    front: tuple[asyncio.Runner, Front], tcp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of queries that need the engine, each client has one in a round."""
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)  # one query in a turn
    runner, one = front

    async def run() -> None:
        flooding, other = one.connect("127.0.0.13", tcp=tcp), one.connect("127.0.0.14", tcp=tcp)
        if tcp:
            await one.accepted(2)
            flooding.send(framed(FREE) * 30)
            other.send(framed(FREE))
        else:
            for _ in range(30):
                flooding.send(FREE)
            other.send(FREE)
        async with asyncio.timeout(20):
            while len(one.handled) < 31:
                await asyncio.sleep(0.001)

    runner.run(run())
    assert one.handled.index("127.0.0.14") <= 2
    assert Counter(one.handled) == {"127.0.0.13": 30, "127.0.0.14": 1}


def test_the_fast_path_has_its_turn_while_the_engine_is_busy(
    front: tuple[asyncio.Runner, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)
    runner, one = front

    async def run() -> int:
        flooding, other = one.connect("127.0.0.13", tcp=False), one.connect("127.0.0.14", tcp=False)
        for _ in range(60):
            flooding.send(FREE)
        async with asyncio.timeout(20):
            while not one.handled:
                await asyncio.sleep(0)
            other.send(BLOCKED)
            while True:
                with contextlib.suppress(BlockingIOError):
                    assert other.recv(4096)
                    return len(one.handled)
                await asyncio.sleep(0)

    assert runner.run(run()) < 60


def test_a_flood_of_one_client_beyond_its_room_is_dropped_and_others_are_answered(
    front: tuple[asyncio.Runner, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)
    runner, one = front
    one.clients._turns = type(one.clients._turns)(20)

    async def run() -> None:
        flooding, other = one.connect("127.0.0.13", tcp=False), one.connect("127.0.0.14", tcp=False)
        for _ in range(50):
            flooding.send(FREE)
        other.send(FREE)
        async with asyncio.timeout(20):
            while not one.handled or len(one.clients):
                await asyncio.sleep(0.001)

    runner.run(run())
    assert one.handled.count("127.0.0.14") == 1
    assert one.counters["dropped_busy"] + len(one.handled) == 51
    assert one.counters["dropped_busy"] > 0
