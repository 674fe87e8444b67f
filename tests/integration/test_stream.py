"""Clients over TCP: slow, hurried, torn, greedy, gone. Each gets its answers or is given up, and costs nobody else anything."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from embargo.daemon.process.outbox import Outbox
from embargo.daemon.resolve import intake, stream
from embargo.daemon.resolve.attempts import Attempts
from embargo.daemon.resolve.clients import Clients, Handle
from embargo.dns.cache import Cache
from support.playbook import query, rules
from support.upstream import Asked, Late, Upstream, right
from support.worker import LOOPBACK, Worker, framed, is_closed, read
from tools.rig import until

BLOCKED = "alipay.example"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Upstream(lambda asked: [Late(0.3, right(asked))]) as upstream, Worker() as started:
        yield started.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})


def serving(handle: Handle, visit: Callable[[tuple[str, int]], Awaitable[bytes]]) -> bytes:
    """What a visitor of the clients' TCP socket brings back. `handle` is the engine."""

    async def run() -> bytes:
        attempts = Attempts(Outbox(lambda *_: True, None))
        taking = intake.make(Cache(), attempts)
        judgement = rules(BLOCKED, acl="127.0.0.0/8")
        attempts.adopt(judgement, names=True)
        taking.adopt(judgement)
        clients = Clients(taking, None, lambda _: True, handle, Counter())
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        clients.listen([], [listening])
        try:
            return await visit(listening.getsockname())
        finally:
            clients.stop_listening()
            clients.close()
            await attempts.stop(0.0)

    return asyncio.run(run())


def rcode(wire: bytes) -> int:
    return dns.message.from_wire(wire).rcode()


@pytest.mark.parametrize("address", LOOPBACK)
def test_a_query_may_come_octet_by_octet(worker: Worker, address: str) -> None:
    with worker.tcp(address) as sock:
        for octet in framed(query(BLOCKED)):
            sock.sendall(bytes([octet]))
        assert rcode(read(sock)) == dns.rcode.NXDOMAIN


def test_many_queries_may_come_at_once_and_are_all_answered(worker: Worker) -> None:
    with worker.tcp() as sock:
        sock.sendall(b"".join(framed(query(f"n{ident}.{BLOCKED}", ident=ident)) for ident in range(300)))
        answers = [dns.message.from_wire(read(sock)) for _ in range(300)]
        assert {answer.id for answer in answers} == set(range(300))
        assert {answer.rcode() for answer in answers} == {dns.rcode.NXDOMAIN}


def test_an_answer_that_is_ready_does_not_wait_for_one_that_is_not(worker: Worker) -> None:
    with worker.tcp() as sock:
        sock.sendall(framed(query("free.test", ident=1)) + framed(query(BLOCKED, ident=2)))
        assert [dns.message.from_wire(read(sock)).id for _ in range(2)] == [2, 1]


def test_a_client_that_closes_its_side_gets_its_answers_before_the_end(worker: Worker) -> None:
    with worker.tcp() as sock:
        sock.sendall(framed(query("free.test")) + framed(query(BLOCKED)))
        sock.shutdown(socket.SHUT_WR)
        assert sorted(rcode(read(sock)) for _ in range(2)) == [dns.rcode.NOERROR, dns.rcode.NXDOMAIN]
        assert read(sock) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"\0", b"\0\x20half a query", b"\0\0", b"\0\5short", framed(query(BLOCKED)[:2] + b"\x81" + query(BLOCKED)[3:]),
    ],
)  # fmt: skip
def test_a_client_that_sends_no_query_is_disconnected(worker: Worker, sent: bytes) -> None:
    with worker.tcp() as sock:
        sock.sendall(sent)
        if sent in (b"", b"\0", b"\0\x20half a query"):  # there might be more
            sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)


def test_a_query_that_gets_no_answer_ends_its_connection_and_leaves_nothing(worker: Worker) -> None:
    """It used to count as one on its way, so that the connection was never closed."""
    response = framed(query(BLOCKED)[:2] + b"\x81" + query(BLOCKED)[3:])
    for _ in range(3 * stream.PER_CLIENT):
        with worker.tcp() as sock:
            sock.sendall(response)
            assert is_closed(sock)
    with worker.tcp() as sock:
        sock.sendall(framed(query(BLOCKED)))
        assert rcode(read(sock)) == dns.rcode.NXDOMAIN


def test_a_large_answer_comes_whole() -> None:
    def large(asked: Asked) -> list[bytes]:
        made = dns.message.make_response(asked.message)
        if asked.tcp:
            made.answer.append(dns.rrset.from_text("free.test.", 300, "IN", "TXT", *(f'"{n:>250}"' for n in range(200))))
        else:
            made.flags |= dns.flags.TC
        return [made.to_wire(max_size=65535)]

    with Upstream(large) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        assert worker.asked(query("free.test", "TXT")).flags & dns.flags.TC
        with worker.tcp() as sock:
            sock.sendall(framed(query("free.test", "TXT")))
            wire = read(sock)
            assert len(wire) > 50_000
            assert len(dns.message.from_wire(wire).answer[0]) == 200
        assert [asked.tcp for asked in upstream.asked] == [False, True]


def test_the_connection_idle_for_longest_gives_way_to_another_of_the_same_client(worker: Worker) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(worker.tcp()) for _ in range(stream.PER_CLIENT)]
        for sock in [*held, held[0]]:  # the second has been idle for longest
            sock.sendall(framed(query(BLOCKED)))
            assert rcode(read(sock)) == dns.rcode.NXDOMAIN
        other = stack.enter_context(worker.tcp("::1"))
        for sock in (stack.enter_context(worker.tcp()), other, held[0]):
            sock.sendall(framed(query(BLOCKED)))
            assert rcode(read(sock)) == dns.rcode.NXDOMAIN
        assert is_closed(held[1])
        assert worker.stats()["counters"]["tcp_evicted"] == 1


def test_a_client_whose_connections_are_all_busy_gets_no_more() -> None:
    handled = []

    def handle(packet: bytes, *_: object) -> bool:
        handled.append(packet)
        return True

    async def visit(address: tuple[str, int]) -> bytes:
        writers = []
        for _ in range(stream.PER_CLIENT):
            writers.append((await asyncio.open_connection(*address))[1])
            writers[-1].write(framed(query("free.test")))
        async with asyncio.timeout(20):
            while len(handled) < stream.PER_CLIENT:
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection(*address)
            found = await reader.read()
        for each in (*writers, writer):
            each.close()
        return found

    assert serving(handle, visit) == b""
    assert len(handled) == stream.PER_CLIENT


def test_queries_beyond_the_limit_wait_and_are_answered() -> None:
    """The connection used to end with the answer to the hundredth."""
    many = 5 * stream.IN_FLIGHT // 2
    with Upstream(lambda asked: [Late(0.6, right(asked))]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        with worker.tcp() as sock:
            sock.sendall(b"".join(framed(query(f"n{ident}.test", ident=ident)) for ident in range(many)))
            until(lambda: worker.stats()["counters"].get("queries_tcp") == stream.IN_FLIGHT, "they arrive")
            time.sleep(0.1)
            assert worker.stats()["counters"]["queries_tcp"] == stream.IN_FLIGHT, "no more are taken before one is answered"
            sock.shutdown(socket.SHUT_WR)
            answers = []
            while wire := read(sock):
                answers.append(dns.message.from_wire(wire))
        assert sorted(answer.id for answer in answers) == list(range(many))
        assert {answer.rcode() for answer in answers} == {dns.rcode.NOERROR}


def test_a_client_that_waits_too_long_for_room_gets_its_answers_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "QUERY_SECONDS", 0.2)
    waiting: list[stream.Connection] = []

    def handle(_packet: bytes, _client: str, connection: object, _udp: bool) -> bool:
        assert isinstance(connection, stream.Connection)
        waiting.append(connection)
        return True

    async def visit(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(framed(query("free.test")) * 2 * stream.IN_FLIGHT)
        async with asyncio.timeout(20):
            while not (waiting and waiting[0].ended):
                await asyncio.sleep(0.01)
            for connection in waiting:
                connection.send(b"answer")
            found = await reader.read()
        writer.close()
        return found

    assert serving(handle, visit) == framed(b"answer") * stream.IN_FLIGHT
    assert len(waiting) == stream.IN_FLIGHT


def test_a_client_that_does_not_read_is_disconnected_and_others_do_not_wait(worker: Worker) -> None:
    with worker.tcp() as greedy, worker.tcp("::1") as other:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(0.2)
        queries = b"".join(framed(query(f"n{ident}.{BLOCKED}", ident=ident)) for ident in range(1000))
        at = 0

        def given_up() -> bool:
            nonlocal at
            try:
                for _ in range(1000):
                    at = (at + greedy.send(queries[at:])) % len(queries)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return False

        until(given_up, "a client that reads nothing is cut off", 30)
        other.sendall(framed(query(BLOCKED)))
        assert rcode(read(other)) == dns.rcode.NXDOMAIN


def test_connections_that_are_open_do_not_hold_up_the_end(worker: Worker) -> None:
    with worker.tcp() as idle, worker.tcp() as asking:
        asking.sendall(framed(query("free.test")))
        until(lambda: worker.stats()["counters"].get("upstream_queries"), "it is on its way")
        worker.stop()
        assert rcode(read(asking)) == dns.rcode.NOERROR, "what was asked is answered first"
        assert is_closed(idle)


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\x20half"])
def test_an_idle_client_is_disconnected_in_time(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(stream, "QUERY_SECONDS", 0.2)

    async def visit(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        async with asyncio.timeout(20):
            found = await reader.read()
        writer.close()
        return found

    assert serving(lambda *_: True, visit) == b""
