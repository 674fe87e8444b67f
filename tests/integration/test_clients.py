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
from embargo.dns import shares
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

    def connect(self, client: str) -> socket.socket:
        """A client's connection from this address."""
        sock = socket.socket()
        self._socks.append(sock)
        sock.bind((client, 0))
        sock.connect(self.tcp.getsockname())
        sock.setblocking(False)
        return sock

    def declined(self, client: str, count: int, *others: str) -> None:
        """The fast path has declined a batch: so many packets of a client, and one of each of the others behind them."""
        peer = intake.UdpPeer(self.clients._listeners[0], None)
        packets = [intake.Packet(FREE, each, peer) for each in [client] * count + list(others)]
        self.clients._taken(intake.Drained(packets, len(packets)))

    async def arrived(self, count: int) -> None:
        """Wait until so many connections have something to read."""
        async with asyncio.timeout(20):
            while len(self.clients.streams.epoll.poll(0)) < count:
                await asyncio.sleep(0.001)

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
        flooding = [one.connect("127.0.0.13") for _ in range(stream.PER_CLIENT)]
        other = one.connect("127.0.0.14")
        await one.accepted(stream.PER_CLIENT + 1)
        asyncio.get_running_loop().remove_reader(one.clients.streams.epoll.fileno())  # each turn is taken below
        for sock in flooding:
            with contextlib.suppress(BlockingIOError):
                sock.send(framed(BLOCKED) * (131_072 // len(framed(BLOCKED))))
        other.send(framed(BLOCKED))
        await one.arrived(stream.PER_CLIENT + 1)
        (waiting,) = (each for each in one.clients.streams.connections.values() if each.client == "127.0.0.14")
        turns = []
        while waiting.since != NOW:
            turns.append(one.intake.take_streams(NOW, WALL).streamed)
        return turns

    turns = runner.run(run())
    assert len(turns) <= 1 + (stream.PER_CLIENT + 1) // intake.STREAMS
    assert max(turns) <= 1 + intake.TURNS * intake.READ // len(framed(BLOCKED))


def test_who_asks_once_does_not_wait_for_the_queries_of_another(
    front: tuple[asyncio.Runner, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of queries that need the engine, each client has one in a round, and the loop goes on after each turn."""
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)  # one query in a turn
    runner, one = front

    async def run() -> None:
        one.declined("127.0.0.13", 30, "127.0.0.14")
        assert one.handled == ["127.0.0.13"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert one.handled[1] == "127.0.0.14"
        async with asyncio.timeout(20):
            while len(one.handled) < 31:
                await asyncio.sleep(0)

    runner.run(run())
    assert Counter(one.handled) == {"127.0.0.13": 30, "127.0.0.14": 1}


def test_who_asks_once_over_tcp_does_not_wait_for_the_queries_of_another(
    front: tuple[asyncio.Runner, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)
    runner, one = front

    async def run() -> None:
        flooding, other = one.connect("127.0.0.13"), one.connect("127.0.0.14")
        await one.accepted(2)
        reader = one.clients.streams.epoll.fileno()
        asyncio.get_running_loop().remove_reader(reader)
        flooding.send(framed(FREE) * 30)
        other.send(framed(FREE))
        await one.arrived(2)
        asyncio.get_running_loop().add_reader(reader, one.clients._streams_readable)
        async with asyncio.timeout(20):
            while len(one.handled) < 31:
                await asyncio.sleep(0.001)

    runner.run(run())
    assert one.handled.index("127.0.0.14") <= 2
    assert Counter(one.handled) == {"127.0.0.13": 30, "127.0.0.14": 1}


def test_a_flood_of_one_client_beyond_its_room_is_dropped_and_others_are_answered(
    front: tuple[asyncio.Runner, Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "TURN_SECONDS", 0.0)
    runner, one = front
    one.clients._turns = shares.Turns(20)

    async def run() -> None:
        one.declined("127.0.0.13", 50, "127.0.0.14")
        async with asyncio.timeout(20):
            while len(one.clients):
                await asyncio.sleep(0)

    runner.run(run())
    assert Counter(one.handled) == {"127.0.0.13": 10, "127.0.0.14": 1}
    assert one.counters["dropped_busy"] == 40


def test_an_error_in_the_engine_ends_its_connection_and_no_other_turn(front: tuple[asyncio.Runner, Front]) -> None:
    """A connection that waits for ever was neither closed nor read, and made the loop spin when its client had gone."""
    runner, one = front

    def handle(_packet: bytes, client: str, _peer: object, _udp: bool) -> bool:
        one.handled.append(client)
        if client == "127.0.0.13":
            raise ValueError("a fault")
        return True

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        one.clients._handle = handle
        sock = one.connect("127.0.0.13")
        await one.accepted(1)
        sock.send(framed(FREE))
        async with asyncio.timeout(20):
            while one.clients.streams.connections:
                await asyncio.sleep(0.001)
            with pytest.raises(ValueError, match="a fault"):
                one.declined("127.0.0.13", 1, "127.0.0.14")
            while "127.0.0.14" not in one.handled:
                await asyncio.sleep(0.001)

    runner.run(run())
