"""What a resolver process reports to the guardian: the addresses behind names, and what it asks before it replies."""

import asyncio
import ipaddress
import os
import socket
import time

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from embargo import names
from embargo.daemon.process import answered
from embargo.daemon.process.answered import Marks
from embargo.daemon.process.channel import Answered, pair
from embargo.daemon.process.sightings import Flushed, Free, Leads, Pass
from embargo.daemon.resolve import witness
from embargo.daemon.resolve.orders import Judgement
from embargo.daemon.resolve.resolver import Resolver
from embargo.lists.image import Image
from support.playbook import compiled, query
from support.upstream import Upstream, right
from support.worker import Worker, bound, settings
from tools.rig import until

BLOCKED = "alipay.example"


def test_addresses_of_an_allowed_name_pass_before_its_reply_is_sent() -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream, Worker() as worker:
        worker.start("192.0.2.80", allow="good.test", dns={"upstream": [f"udp://127.0.0.1:{upstream.port}"]})
        worker.meet()
        with worker.udp() as sock:
            sock.send(query("good.test"))
            asked = worker.to_guardian(Pass)
            assert unpacked(asked) == [("good.test", ["192.0.2.80"], 300)]
            worker.ready(asked.number)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR
            sock.send(query("good.test"))
            worker.to_guardian(Pass)
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.NOERROR, "it does not wait for ever"


def unpacked(record: Answered | Leads | Free | Pass) -> list[tuple[str, list[str], int]]:
    """(name, addresses, seconds) of the packed records, as text."""
    return [
        (names.to_text(name), [str(ipaddress.ip_address(a)) for a in addresses], seconds)
        for name, addresses, seconds in answered.unpack(record.packed)
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
        resolver.listen([udp], [tcp])
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
