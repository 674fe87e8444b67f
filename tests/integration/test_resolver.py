"""A resolver process as it runs on a gateway: real sockets, real `dig`, orders over its channel."""

import asyncio
import ipaddress
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from embargo import names
from embargo.daemon.process import answered
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Answered, Failed, pair
from embargo.daemon.process.sightings import Flushed, Free, Leads, Pass
from embargo.daemon.resolve import witness
from embargo.daemon.resolve.orders import Adopt, Judgement
from embargo.daemon.resolve.resolver import Resolver
from embargo.daemon.resolve.selector import Selector
from embargo.dns import cache
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.records import Done
from support import twins
from support.matrix import ACCELERATORS, pairs
from support.playbook import compiled, query
from support.upstream import Upstream, right
from support.worker import LOOPBACK, Worker, bound, framed, is_closed, read, settings
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
        assert (stats["counters"]["queries_udp"], stats["counters"]["queries_tcp"], stats["counters"]["fast"]) == (5, 1, 4)
        assert (stats["cache"]["hits"], stats["cache"]["misses"], stats["cache"]["entries"]) == (2, 1, 1)
        (row,) = stats["upstreams"]
        assert (row["server"], row["asked"], row["failed"], row["healthy"]) == (f"udp://127.0.0.1:{upstream.port}", 1, 0, True)
        worker.policy("other.test")
        assert worker.stats()["hits"] == {"alipay/payment": 3}, "a policy ends no count"


def test_addresses_of_an_allowed_name_pass_before_its_reply_is_sent() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start("192.0.2.80", allow="good.test", dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        worker.meet()
        with worker.udp() as sock:
            sock.send(query("good.test"))
            asked = worker.to_guardian(Pass)
            assert asked.addresses == ((bytes([192, 0, 2, 80]), 300),)
            worker.ready(asked.number)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR
            sock.send(query("good.test"))
            worker.to_guardian(Pass)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR, "it does not wait for ever"


def unpacked(record: Answered | Leads | Free) -> list[tuple[str, list[str], int]]:
    """(name, addresses, seconds) of the packed records, as text."""
    packed = record.records if isinstance(record, Answered) else record.packed
    return [
        (names.to_text(name), [str(ipaddress.ip_address(a)) for a in addresses], seconds)
        for name, addresses, seconds in answered.unpack(packed)
    ]


@pytest.mark.parametrize("accelerated", ["native", "none"])
@pytest.mark.parametrize("log_names", ["blocked", "none"])
def test_the_addresses_behind_a_blocked_name_are_reported_to_the_guardian(accelerated: str, log_names: str) -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker(accelerated=accelerated) as worker:
        dns_ = {"upstream": [f"udp://127.0.0.1:{upstream.port}"], "learn": True, "log_names": log_names}
        worker.start(BLOCKED, dns=dns_)
        worker.meet()
        assert worker.asked(query(f"www.{BLOCKED}")).rcode() == dns.rcode.NXDOMAIN, "it is answered at once"
        leads = worker.to_guardian(Leads)
        assert unpacked(leads) == [(f"www.{BLOCKED}", ["192.0.2.80"], 300)]
        assert (leads.class_, leads.list, leads.line) == (("alipay", "payment"), "alipay/payment.list", 1)
        assert leads.rule == BLOCKED
        until(lambda: len(upstream.asked) == 2, "both types are asked for")
        assert {dns.rdatatype.to_text(asked.message.question[0].rdtype) for asked in upstream.asked} == {"A", "AAAA"}
        for _ in range(3):
            worker.asked(query(f"www.{BLOCKED}"))
        assert worker.stats()["counters"]["looked_up"] == 1, "once for as long as the answer lasts"
        assert worker.stats()["cache"]["entries"] == 0, "nobody will ask the cache for it"


def test_what_could_not_be_looked_up_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no upstream yet when the name is asked for, and none comes of itself."""
    monkeypatch.setattr(witness, "MAX_INTERVAL", 0.3)
    octets, board = compiled(BLOCKED)
    channel, guardian = pair()
    marks = Marks.make()

    async def run(upstream: Upstream) -> None:
        udp, tcp = bound(["127.0.0.1"])
        resolver = Resolver(lambda *_: True, None)
        resolver.adopt(Image(octets), Judgement(1, board, ()), settings(learn=True))
        resolver.connect_guardian(channel, marks)
        await resolver.listen([udp], [tcp])
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(query(BLOCKED), udp.getsockname())
                await asyncio.to_thread(sock.recv, 4096)
            await asyncio.to_thread(until, lambda: resolver.stats().counters["looked_up"] == 1, "it is tried")
            with_upstream = settings(learn=True, upstream=[f"udp://127.0.0.1:{upstream.port}"])
            resolver.adopt(Image(octets), Judgement(2, board, ()), with_upstream)
            await asyncio.to_thread(until, lambda: len(upstream.asked) >= 2, "it is tried again")
        finally:
            await resolver.stop()

    with guardian, Upstream(lambda asked: [right(asked)]) as upstream:
        asyncio.run(run(upstream))
    os.close(marks)


def test_nothing_is_looked_up_for_the_firewall_when_it_does_not_learn() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"], "learn": False})
        worker.meet()
        worker.asked(query(BLOCKED))
        time.sleep(0.6)
        assert worker.stats()["counters"]["looked_up"] == 0
        assert upstream.asked == []


def test_answers_of_unblocked_names_are_reported_to_the_guardian_together() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        worker.meet()
        for name in ("one.test", "two.test", "one.test"):
            assert worker.asked(query(name)).rcode() == dns.rcode.NOERROR
        found = unpacked(worker.to_guardian(Answered))
        while len(found) < 2:
            found += unpacked(worker.to_guardian(Answered))
        assert found == [("one.test", ["192.0.2.80"], 300), ("two.test", ["192.0.2.80"], 300)]


def test_a_guardian_that_asks_gets_all_answers_at_once() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        worker.meet()
        worker.flush(1)
        assert worker.to_guardian(Flushed).number == 1
        assert not worker.news, "nothing was answered"
        assert worker.asked(query("one.test")).rcode() == dns.rcode.NOERROR
        worker.flush(2)
        assert worker.to_guardian(Flushed).number == 2
        (answered,) = worker.news
        assert unpacked(answered) == [("one.test", ["192.0.2.80"], 300)]


def test_a_reply_waits_until_its_address_is_free_but_not_for_ever() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        marks = worker.meet()
        marks.add(ipaddress.ip_address("192.0.2.80").packed)
        with worker.udp() as sock:
            sock.send(query("neighbour.test"))
            asked = worker.to_guardian(Free)
            assert unpacked(asked) == [("neighbour.test", ["192.0.2.80"], 300)]
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(4096)
            worker.ready(asked.number)
            sock.settimeout(10)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR
            sock.send(query("other.test"))
            worker.to_guardian(Free)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR, "the guardian does not answer"
        marks.remove(ipaddress.ip_address("192.0.2.80").packed)
        assert worker.asked(query("third.test")).rcode() == dns.rcode.NOERROR
        assert unpacked(worker.to_guardian(Answered))[0][0] == "third.test"


def test_a_new_guardian_gets_the_cached_answers() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        for number in range(300):
            assert worker.asked(query(f"n{number}.test")).rcode() == dns.rcode.NOERROR
        worker.meet()
        found: set[str] = set()
        while len(found) < 4:  # of an address, no more names are remembered
            found |= {name for name, _, _ in unpacked(worker.to_guardian(Answered))}
        assert found <= {f"n{number}.test" for number in range(300)}


def test_a_worker_goes_on_without_a_guardian_and_with_the_next_one() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start(BLOCKED, dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        worker.meet().add(ipaddress.ip_address("192.0.2.80").packed)
        worker.meet()
        assert worker.asked(query("one.test")).rcode() == dns.rcode.NOERROR, "the page is the new guardian's"
        assert unpacked(worker.to_guardian(Answered))[0][0] == "one.test"


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
        await resolver.listen([udp], [tcp])
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
