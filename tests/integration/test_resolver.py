"""A resolver process as it runs on a gateway: real sockets, real `dig`, orders over its channel."""

import asyncio
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from embargo.daemon.process.channel import Failed
from embargo.daemon.resolve.orders import Adopt, Flush, Flushed, Judge, Judged, Judgement
from embargo.daemon.resolve.resolver import Resolver
from embargo.daemon.resolve.selector import Selector
from embargo.dns import cache
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.records import Done
from support import twins
from support.matrix import ACCELERATORS, pairs
from support.playbook import compiled, query
from support.upstream import Asked, Upstream, good, right
from support.worker import LOOPBACK, Worker, answered, bound, framed, is_closed, read, settings
from tools.rig import until

BLOCKED = "alipay.example"
TRANSPORTS = ("+notcp", "+tcp")
NAMES = ("alipay.example", "a.b.WWW.Alipay.Example")
QTYPES = ("A", "AAAA", "HTTPS", "TXT", "TYPE65399", "ANY")
EDE = "app=alipay function=payment list=alipay/payment.list:1 rule=alipay.example"


@pytest.fixture(scope="module", params=ACCELERATORS, ids=["compiled", "python"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker(accelerated=request.param) as started:
        yield started.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})


@pytest.mark.parametrize(("address", "transport", "name", "qtype"), pairs(LOOPBACK, TRANSPORTS, NAMES, QTYPES))
def test_dig_sees_a_blocked_name(worker: Worker, address: str, transport: str, name: str, qtype: str) -> None:
    said = worker.dig(name, qtype, transport, address=address)
    assert "status: NXDOMAIN" in said
    assert "flags: qr rd ra;" in said
    assert f"EDE: 15 (Blocked): ({EDE})" in said
    assert f"{name}.\t" in said.partition("AUTHORITY SECTION")[2]
    assert "\t10\tIN\tSOA\tblocked.invalid. hostmaster.invalid. 1 3600 600 86400 10" in said
    assert "Warning" not in said
    assert "Got bad packet" not in said


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_dig_sees_an_allowed_name(worker: Worker, address: str, transport: str) -> None:
    said = worker.dig("free.test", transport, address=address)
    assert "status: NOERROR" in said
    assert "192.0.2.80" in said
    assert "EDE" not in said


def test_dig_without_edns_sees_none(worker: Worker) -> None:
    said = worker.dig(BLOCKED, "+noedns")
    assert "status: NXDOMAIN" in said
    assert "OPT PSEUDOSECTION" not in said


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("+opcode=15",), "NOTIMP"), (("+opcode=NOTIFY",), "NOTIMP"), (("-c", "CH", "-t", "TXT"), "REFUSED"),
        (("-c", "HS"), "REFUSED"), (("+edns=1", "+noednsneg"), "BADVERS"), (("-t", "AXFR"), "REFUSED"),
        (("+header-only",), "FORMERR"),
    ],
)  # fmt: skip
def test_dig_sees_what_is_refused(worker: Worker, words: tuple[str, ...], status: str) -> None:
    said = worker.dig("free.test", *words)
    assert f"status: {status}" in said or (words == ("-t", "AXFR") and "Transfer failed" in said), said


@pytest.mark.parametrize(
    "words", [("+norec",), ("+cdflag",), ("+dnssec",), ("+adflag",), ("+zflag",), ("+cookie",), ("+subnet=192.0.2.0/24",)]
)
def test_no_flag_leads_past_a_block(worker: Worker, words: tuple[str, ...]) -> None:
    said = worker.dig(BLOCKED, *words)
    assert "status: NXDOMAIN" in said
    assert EDE in said


@pytest.mark.parametrize(
    ("mode", "qtype", "status", "data"),
    [
        ("nodata", "A", "NOERROR", "SOA"), ("refused", "A", "REFUSED", ""), ("null", "A", "NOERROR", "\t10\tIN\tA\t0.0.0.0"),
        ("null", "AAAA", "NOERROR", "\t10\tIN\tAAAA\t::"), ("null", "HTTPS", "NOERROR", "SOA"),
        (["192.0.2.1", "2001:db8::1"], "A", "NOERROR", "\t10\tIN\tA\t192.0.2.1"),
        (["192.0.2.1", "2001:db8::1"], "AAAA", "NOERROR", "\t10\tIN\tAAAA\t2001:db8::1"),
        (["192.0.2.1"], "AAAA", "NOERROR", "SOA"), (["192.0.2.1"], "ANY", "NOERROR", "SOA"),
    ],
)  # fmt: skip
def test_dig_sees_every_block_mode(mode: str | list[str], qtype: str, status: str, data: str) -> None:
    with Worker(["127.0.0.1"]) as worker:
        worker.start(BLOCKED, dns={"block_mode": mode})
        for transport in ("+notcp", "+tcp"):
            said = worker.dig(BLOCKED, qtype, transport)
            assert f"status: {status}" in said
            assert data in said
            assert EDE in said
            assert "status: NXDOMAIN" in worker.dig("use-application-dns.net", qtype, transport)
            assert "status: NOERROR" in worker.dig("_dns.resolver.arpa", "SVCB", transport)


@pytest.mark.parametrize("accelerated", ["native", "none"])
def test_a_wildcard_socket_answers_from_the_address_that_was_asked(accelerated: str) -> None:
    with Worker(["0.0.0.0", "::"], accelerated=accelerated) as worker:
        worker.start(BLOCKED)
        for address in ("127.0.0.1", "127.0.0.2", "127.8.8.8", "::1"):
            assert worker.asked(query(BLOCKED), address).rcode() == dns.rcode.NXDOMAIN
            assert worker.asked(query("free.test"), address).rcode() == dns.rcode.SERVFAIL, "the engine's replies too"


def test_strangers_get_no_answer() -> None:
    with Worker() as worker:
        worker.start(BLOCKED, dns={"allow_from": ["127.0.0.2/32", "::1/128"]})
        with worker.udp() as stranger, worker.udp(source="127.0.0.2") as friend:
            stranger.send(query(BLOCKED))
            friend.send(query(BLOCKED))
            assert friend.recv(4096)[3] & 15 == dns.rcode.NXDOMAIN
            stranger.settimeout(0.0)
            with pytest.raises(BlockingIOError):
                stranger.recv(4096)
        with worker.tcp() as stranger:
            assert is_closed(stranger)
        stats = worker.stats()["counters"]
        assert (stats["dropped_acl"], stats["dropped_tcp_limit"]) == (1, 1)


def test_a_policy_is_swapped_under_load_without_losing_a_query() -> None:
    rounds, senders = 60, 3
    lists = (("odd.test", BLOCKED), ("even.test", BLOCKED))
    wrong: list[str] = []
    answered = [0] * senders
    done = threading.Event()

    def ask(worker: Worker, number: int) -> None:
        names = itertools.cycle(("odd.test", "even.test", "www.alipay.example"))
        with worker.udp(LOOPBACK[number % 2]) as sock:
            for ident in range(60_000):
                name = next(names)
                sock.send(query(name, ident=ident, edns=ident % 2 == 0))
                try:
                    found = dns.message.from_wire(sock.recv(4096))
                except TimeoutError:
                    wrong.append(f"{name} was not answered")
                    return
                answered[number] += 1
                expected = (dns.rcode.NXDOMAIN,) if name == "www.alipay.example" else (dns.rcode.NXDOMAIN, dns.rcode.NOERROR)
                if found.id != ident or found.rcode() not in expected:
                    wrong.append(f"{name}: {found}")
                if done.is_set():
                    return

    def goes_on(before: int) -> object:
        return sum(answered) > before + 10 or wrong

    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(*lists[0], dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        threads = [threading.Thread(target=ask, args=(worker, number)) for number in range(senders)]
        for thread in threads:
            thread.start()
        for number in range(1, rounds):
            before = sum(answered)
            assert worker.policy(*lists[number % 2]) == Done()
            until(partial(goes_on, before), "queries go on")
        done.set()
        for thread in threads:
            thread.join()
        assert not wrong
        counted = sum(event["count"] for event in worker.stop() if event["qname"] == "www.alipay.example")
        assert counted >= sum(answered) // 3 - senders


def test_the_new_policy_is_in_force_when_the_order_is_answered() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for number in range(20):
            assert worker.asked(query("free.test")).rcode() == dns.rcode.NOERROR, "cached or not"
            worker.policy("free.test" if number % 2 else "192.0.2.80")
            assert worker.asked(query("free.test")).rcode() == dns.rcode.NXDOMAIN
            worker.policy(BLOCKED)
        assert len(upstream.asked) == 1


def test_settings_change_with_the_policy() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        worker.policy(BLOCKED, dns={"allow_from": ["127.0.0.0/8"], "block_mode": "refused", "block_ttl": 5, "upstream": []})
        assert worker.asked(query(BLOCKED)).rcode() == dns.rcode.REFUSED
        worker.policy(BLOCKED)
        assert worker.asked(query(BLOCKED)).rcode() == dns.rcode.REFUSED, "settings that are not told stay"


def test_an_order_that_cannot_be_carried_out_changes_nothing() -> None:
    with Worker() as worker, open(os.devnull, "rb") as nothing, open(__file__, "rb") as no_image:
        worker.start(BLOCKED)
        for file in (nothing, no_image):
            answer = worker.ask(Adopt(Judgement(2, Switchboard((Action.PASS,)), ()), None), [file.fileno()])
            assert isinstance(answer, Failed)
            assert worker.asked(query(BLOCKED)).rcode() == dns.rcode.NXDOMAIN
        assert "image" in answer.reason
        assert isinstance(worker.ask(Adopt(Judgement(2, Switchboard(()), ()), None)), Failed)


def test_all_events_are_handed_over_at_the_end() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        with worker.udp() as sock, worker.tcp() as stream:
            for number in range(500):
                packet = query(f"n{number % 50}.{BLOCKED}", ident=number, edns=number % 3 == 0)
                sock.send(packet)
                sock.recv(4096)
                stream.sendall(framed(packet))
                assert read(stream), "what it has not read yet when it is told to stop has no event, and no answer"
        events = worker.stop()
        assert sum(event["count"] for event in events) == 1000
        assert {event["qname"] for event in events} == {f"n{number}.{BLOCKED}" for number in range(50)}
        first = events[0]
        assert (first["schema"], first["event"], first["client"], first["qtype"]) == (1, "dns", "127.0.0.1", "A")
        assert (first["action"], first["mode"], first["app"], first["function"]) == ("nxdomain", "block", "alipay", "payment")
        assert (first["list"], first["line"], first["rule"], first["generation"]) == ("alipay/payment.list", 1, BLOCKED, 1)


def test_names_stay_out_of_the_log_when_they_are_not_wanted() -> None:
    with Worker() as worker:
        worker.start(BLOCKED, dns={"log_names": "none"})
        for number in range(5):
            worker.asked(query(f"n{number}.{BLOCKED}"))
        events = worker.stop()
        assert [event["count"] for event in events] == [1, 4]
        assert all("qname" not in event for event in events)


def test_all_names_are_logged_when_they_are_wanted() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"log_names": "all", "upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for name in ("free.test", "free.test", BLOCKED):
            worker.asked(query(name))
        counts = {(event["qname"], event["action"], event["count"]) for event in worker.stop()}
        assert counts == {("free.test", "pass", 1), ("free.test", "pass", 1), (BLOCKED, "nxdomain", 1)}


def test_events_of_two_policies_are_distinguished() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        worker.asked(query(BLOCKED))
        worker.policy("example.test", BLOCKED)
        worker.asked(query(BLOCKED))
        assert [(event["generation"], event["line"], event["count"]) for event in worker.stop()] == [(1, 1, 1), (2, 2, 1)]


def test_the_counters_are_reported() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for name in (BLOCKED, BLOCKED, "free.test", "free.test", "free.test"):
            worker.asked(query(name))
        with worker.tcp() as stream:
            stream.sendall(framed(query(BLOCKED)))
            stream.recv(4096)
        stats = worker.stats()
        assert stats["hits"] == {"alipay/payment": 3}
        assert (stats["counters"]["queries_udp"], stats["counters"]["queries_tcp"], stats["counters"]["fast"]) == (5, 1, 5)
        assert (stats["cache"]["hits"], stats["cache"]["misses"], stats["cache"]["entries"]) == (2, 1, 1)
        (row,) = stats["upstreams"]
        assert (row["server"], row["asked"], row["failed"], row["healthy"]) == (f"udp://127.0.0.1:{upstream.port}", 1, 0, True)
        worker.policy("other.test")
        assert worker.stats()["hits"] == {"alipay/payment": 3}, "a policy ends no count"


@pytest.mark.parametrize("accelerated", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_name_is_renewed_although_nothing_else_wakes_the_worker(
    kind: socket.SocketKind, accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "REFRESH", 0.005)
    if not accelerated:
        twins.without(monkeypatch)
    selector = Selector()

    def client(address: tuple[str, int], upstream: Upstream) -> None:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.connect(address)
            for pause in (0.0, 0.0, 1.6):  # asked for, asked for again, and when the answer is old and all timers are over
                time.sleep(pause)
                sock.send(query("free.test") if kind == socket.SOCK_DGRAM else framed(query("free.test")))
                _ = sock.recv(4096) if kind == socket.SOCK_DGRAM else read(sock)
            until(lambda: len(upstream.asked) == 2, "the name is fetched anew", 5.0)

    async def run(upstream: Upstream) -> None:
        udp, tcp = bound(["127.0.0.1"])
        resolver = Resolver(lambda *_: True, None, selector)
        octets, board = compiled(BLOCKED)
        with_upstream = settings(upstream=[f"udp://127.0.0.1:{upstream.port}"])
        resolver.adopt(Image(octets), Judgement(1, board, ()), with_upstream)
        resolver.listen([udp], [tcp])
        try:
            await asyncio.to_thread(client, udp.getsockname(), upstream)
            assert resolver.stats().cache["refreshed"] == 1
        finally:
            await resolver.stop()

    with (
        Upstream(lambda asked: [right(asked)]) as upstream,
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner,
    ):
        runner.run(run(upstream))


def test_it_ends_when_the_supervisor_is_gone() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        worker.hang_up()
        assert worker.process.wait(10) == 0


def test_it_holds_no_power() -> None:
    with Worker() as worker:
        worker.start(BLOCKED)
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
        found = dict(line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs")))
        assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
        assert found["NoNewPrivs"] == "1"


def test_descriptors_do_not_grow() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})

        def load(first: int) -> int:
            for number in range(first, first + 50):
                worker.asked(query(f"n{number}.test"))
                with worker.tcp() as stream:
                    stream.sendall(framed(query(BLOCKED)))
                    stream.recv(4096)
                worker.policy(BLOCKED)
            return held()

        def held() -> int:
            return len(os.listdir(f"/proc/{worker.process.pid}/fd"))

        level = load(0)
        load(100)
        until(lambda: held() <= level, f"{level} descriptors", 20.0)  # sockets to upstreams are kept for ten seconds


def test_a_worker_that_is_stopped_by_a_signal_leaves_its_queries_to_the_next() -> None:
    """The sockets are the supervisor's: what waits in them is answered by whoever comes."""
    with Worker() as worker:
        copies = [sock.dup() for _, sock in worker.sockets]
        worker.start(BLOCKED)
        worker.asked(query(BLOCKED))
        worker.process.send_signal(signal.SIGSTOP)
        with worker.udp() as sock:
            sock.send(query(BLOCKED))
            worker.process.kill()
            worker.process.wait()
            with Worker(sockets=copies) as second:
                second.start(BLOCKED)
                assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NXDOMAIN


def test_flushed_answers_are_asked_for_at_once(worker: Worker) -> None:
    """Also where the fast path remembers the reply."""
    with Upstream(good) as upstream:
        worker.policy("alipay.example", dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for name in ("free.test", "www.free.test", "other.test"):
            for _ in range(3):
                assert answered(worker, name) == ["192.0.2.80"]
        assert worker.ask(Flush("free.test")) == Flushed(2)
        for name in ("free.test", "www.free.test", "other.test"):
            assert answered(worker, name) == ["192.0.2.80"]
        assert [str(asked.message.question[0].name) for asked in upstream.asked[3:]] == ["free.test.", "www.free.test."]
        assert worker.ask(Flush(".")) == Flushed(3)


def test_what_an_answer_leads_to_is_told_on_request_and_not_logged(worker: Worker) -> None:
    def leading(asked: Asked) -> list[bytes]:
        return [right(asked, "203.0.113.66" if str(asked.message.question[0].name) == "bad.test." else "192.0.2.80")]

    with Upstream(leading) as upstream:
        worker.policy("alipay.example", "203.0.113.0/24", dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for _ in range(2):  # from the upstream, then from the cache
            judged = worker.ask(Judge("bad.test", 1, "127.0.0.1"))
            assert (judged.answer, judged.rule, judged.line, judged.audit) == ("203.0.113.66", "203.0.113.0/24", 2, False)
        for name in ("good.test", "alipay.example", "localhost"):
            assert worker.ask(Judge(name, 1, "127.0.0.1")) == Judged()
        assert worker.ask(Judge("bad.test", 1, "198.51.100.1")) == Judged(), "this client is not answered"
    assert [event for event in worker.stop() if event.get("qname") in ("bad.test", "good.test")] == []
