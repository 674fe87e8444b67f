"""A resolver and upstreams that misbehave: the client gets the right answer or SERVFAIL in time, and nothing forged."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from embargo.daemon.resolve.forward import SOCKETS
from embargo.dns import message
from embargo.dns.upstream import SEVERAL
from support.matrix import ACCELERATORS
from support.playbook import query
from support.upstream import Asked, Elsewhere, Late, Script, Upstream, good, right
from support.worker import Worker, addresses, answered
from tools.rig import until

FORGED = "203.0.113.66"


@pytest.fixture(scope="module", params=ACCELERATORS, ids=["compiled", "python"])
def shared(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker(accelerated=request.param) as started:
        yield started.start("alipay.example")


@pytest.fixture
def worker(shared: Worker) -> Worker:
    return shared


def asking(worker: Worker, *upstreams: Upstream, scheme: str = "udp") -> None:
    """From now on the worker asks these, and knows nothing."""
    settings = {
        "allow_from": ["127.0.0.0/8", "::1/128"],
        "block_mode": "nxdomain",
        "block_ttl": 10,
        "upstream": ["udp://127.0.0.1:1"],
    }
    worker.policy("alipay.example", dns=settings)
    servers = [f"{scheme}://127.0.0.1:{each.port}" for each in upstreams]
    worker.policy("alipay.example", dns=settings | {"upstream": servers})


def extended(found: dns.message.Message) -> tuple[int, str]:
    (option,) = [each for each in found.options if isinstance(each, dns.edns.EDEOption)]
    return int(option.code), str(option.text)


# ── forgeries ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def other_id(asked: Asked) -> bytes:
    wire = right(asked, FORGED)
    return (int.from_bytes(wire[:2]) ^ 0x5555).to_bytes(2) + wire[2:]


def other_question(asked: Asked) -> bytes:
    return right(asked, FORGED).replace(b"\4free", b"\4fref")


def other_type(asked: Asked) -> bytes:
    return right(asked, FORGED).replace(b"\4test\0\0\1", b"\4test\0\0\x1c", 1)


def other_class(asked: Asked) -> bytes:
    return right(asked, FORGED).replace(b"\4test\0\0\1\0\1", b"\4test\0\0\1\0\3", 1)


def no_response(asked: Asked) -> bytes:
    wire = bytearray(right(asked, FORGED))
    wire[2] &= 0x7F
    return bytes(wire)


def torn(asked: Asked) -> bytes:
    return right(asked, FORGED)[:-2]


def looping(asked: Asked) -> bytes:
    wire = right(asked, FORGED)
    at = wire.index(b"\xc0\x0c", 12)
    return wire[:at] + (0xC000 | at).to_bytes(2) + wire[at + 2 :]


FORGERS: tuple[Callable[[Asked], bytes], ...] = (
    other_id, other_question, other_type, other_class, no_response,
    lambda _: b"\0", lambda asked: asked.wire[:11], lambda asked: b"\xff" * 2000,
)  # fmt: skip


@pytest.mark.parametrize("forged", FORGERS)
def test_what_does_not_match_is_passed_over_until_the_right_answer_comes(
    worker: Worker, forged: Callable[[Asked], bytes]
) -> None:
    before = worker.stats()["counters"]["mismatched"]
    with Upstream(lambda asked: [forged(asked)] * 20 + [Late(0.05, right(asked))]) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]
        assert len(upstream.asked) == 1
    assert worker.stats()["counters"]["mismatched"] == before + 20


@pytest.mark.parametrize("late", [0.0, 3.0])
def test_what_matches_and_cannot_be_read_is_not_waited_over(worker: Worker, late: float) -> None:
    """The good answer of the same server comes too late to matter."""
    with Upstream(lambda asked: [looping(asked), Late(late, right(asked, FORGED))]) as first, Upstream(good) as second:
        asking(worker, first, second)
        assert answered(worker) == ["192.0.2.80"]
        assert (len(first.asked), len(second.asked)) == (1, 1)


def test_a_question_in_other_letters_is_the_same_question(worker: Worker) -> None:
    with Upstream(lambda asked: [right(asked).replace(b"\4free", b"\4FREE")]) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]


def test_what_comes_from_another_port_is_never_read(worker: Worker) -> None:
    before = worker.stats()["counters"]["mismatched"]
    with Upstream(lambda asked: [Elsewhere(right(asked, FORGED))] * 20 + [Late(0.05, right(asked))]) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]
    assert worker.stats()["counters"]["mismatched"] == before


def test_records_that_do_not_belong_to_the_question_are_neither_passed_on_nor_cached(worker: Worker) -> None:
    def poisoned(asked: Asked) -> list[bytes]:
        made = dns.message.make_response(asked.message)
        name = str(asked.message.question[0].name)
        made.answer.append(dns.rrset.from_text(name, 300, "IN", "A", "192.0.2.80"))
        if name == "free.test.":
            made.answer.append(dns.rrset.from_text("bank.test.", 300, "IN", "A", FORGED))
            made.authority.append(dns.rrset.from_text("bank.test.", 300, "IN", "NS", "ns.evil.test."))
            made.authority.append(dns.rrset.from_text("test.", 300, "IN", "NS", "ns.bank.test."))
            made.additional.append(dns.rrset.from_text("bank.test.", 300, "IN", "A", FORGED))
        return [made.to_wire()]

    with Upstream(poisoned) as upstream:
        asking(worker, upstream)
        for _ in range(2):
            found = worker.asked(query("free.test"))
            assert addresses(found) == ["192.0.2.80"]
            assert "bank.test. " not in found.to_text()
        assert answered(worker, "bank.test") == ["192.0.2.80"]
        assert len(upstream.asked) == 2


def test_ports_and_ids_are_random_and_questions_are_ours(worker: Worker) -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream:
        asking(worker, upstream)
        for number in range(300):
            worker.asked(query(f"Name{number}.Test", payload=4096, options=[dns.edns.ECSOption("198.51.100.0", 24)]))
        ports, idents = {each.port for each in upstream.asked}, {each.message.id for each in upstream.asked}
        assert len(upstream.asked) == 300
        assert len(ports) > 120, "a port is used again by chance, for a while"
        assert len(idents) > 280
        drawn = {(each.port, each.message.id) for each in upstream.asked}
        assert len(drawn) >= 298, "of millions: two that are equal are a coincidence"
        assert {ident & 1 << bit for bit in range(16) for ident in idents} == {0, *(1 << bit for bit in range(16))}
        for each in upstream.asked:
            assert each.message.options == ()
            assert each.message.payload == message.MAX_UDP
            assert each.message.question[0].name.to_text() == each.message.question[0].name.to_text().lower()


# ── over TCP ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def truncated(asked: Asked) -> bytes:
    made = dns.message.make_response(asked.message)
    made.flags |= dns.flags.TC
    return made.to_wire()


def test_a_truncated_response_is_fetched_over_tcp(worker: Worker) -> None:
    with Upstream(lambda asked: [right(asked) if asked.tcp else truncated(asked)]) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]
        assert [each.tcp for each in upstream.asked] == [False, True]


def test_an_upstream_over_tcp_is_asked_over_tcp_alone(worker: Worker) -> None:
    with Upstream(lambda asked: [other_id(asked), right(asked)]) as upstream:
        asking(worker, upstream, scheme="tcp")
        assert answered(worker) == ["192.0.2.80"]
        assert [each.tcp for each in upstream.asked] == [True]


OVER_TCP: tuple[Callable[[Asked], list[bytes]], ...] = (
    lambda _: [], lambda asked: [truncated(asked)], lambda asked: [torn(asked)], lambda asked: [other_id(asked)],
    lambda _: [b""],
)  # fmt: skip


@pytest.mark.parametrize("script", OVER_TCP)
def test_the_next_server_is_asked_when_one_fails_over_tcp(worker: Worker, script: Callable[[Asked], list[bytes]]) -> None:
    """It closes the connection without a word, or after one of no use."""
    with Upstream(lambda asked: script(asked) if asked.tcp else [truncated(asked)]) as bad, Upstream(good) as second:
        asking(worker, bad, second)
        assert answered(worker) == ["192.0.2.80"]
        assert [each.tcp for each in bad.asked] == [False, True]


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def failing(rcode: int) -> Script:
    def script(asked: Asked) -> list[bytes]:
        made = dns.message.make_response(asked.message)
        made.set_rcode(dns.rcode.Rcode(rcode))
        return [made.to_wire()]

    return script


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_the_next_server_is_asked_when_one_cannot_help(worker: Worker, rcode: dns.rcode.Rcode) -> None:
    with Upstream(failing(rcode)) as first, Upstream(good) as second:
        asking(worker, first, second)
        assert answered(worker) == ["192.0.2.80"]
        assert (len(first.asked), len(second.asked)) == (1, 1)


def test_the_next_server_is_asked_when_one_is_silent_or_malformed(worker: Worker) -> None:
    scripts: tuple[Script, ...] = (lambda asked: [looping(asked)], lambda _: [], good)
    with contextlib.ExitStack() as stack:
        cut, silent, third = (stack.enter_context(Upstream(script)) for script in scripts)
        asking(worker, cut, silent, third)
        assert answered(worker) == ["192.0.2.80"]
        rows = {row["server"]: row for row in worker.stats()["upstreams"]}
        assert [rows[f"udp://127.0.0.1:{each.port}"]["healthy"] for each in (silent, third)] == [False, True]
        assert "malformed" in rows[f"udp://127.0.0.1:{cut.port}"]["last_error"]
        assert answered(worker, "other.test") == ["192.0.2.80"]
        assert answered(worker, "third.test") == ["192.0.2.80"]
        rows = {row["server"]: row for row in worker.stats()["upstreams"]}
        assert [rows[f"udp://127.0.0.1:{each.port}"]["healthy"] for each in (cut, silent, third)] == [False, False, True]
        asked = len(cut.asked), len(silent.asked)
        assert answered(worker, "fourth.test") == ["192.0.2.80"]
        assert (len(cut.asked), len(silent.asked)) == asked, "they are set aside"


@pytest.mark.parametrize("scheme", ["udp", "tcp"])
@pytest.mark.parametrize("servers", [1, 2])
def test_servers_that_are_always_late_are_used_and_each_answer_counts(worker: Worker, scheme: str, servers: int) -> None:
    """The first wait is shorter than their time: the next one is asked as well, and the first answer is not thrown away."""

    def late(asked: Asked) -> list[bytes | Late]:
        if asked.tcp:
            time.sleep(1.4)
            return [right(asked)]
        return [Late(1.4, right(asked))]

    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Upstream(late)) for _ in range(servers)]
        asking(worker, *slow, scheme=scheme)
        assert answered(worker) == ["192.0.2.80"]
        assert all(each.asked for each in slow)
        first = worker.stats()["upstreams"]
        assert first[0]["healthy"]
        assert answered(worker, "other.test") == ["192.0.2.80"]
        assert len([each for each in slow[0].asked if "other" in str(each.message.question[0].name)]) == 1, "its time is known"


def test_an_answer_that_comes_when_the_client_has_gone_is_cached(worker: Worker) -> None:
    released = threading.Event()

    def held(asked: Asked) -> list[bytes]:
        released.wait(30)
        return [right(asked)]

    with Upstream(held) as upstream:
        asking(worker, upstream)
        assert worker.asked(query("free.test")).rcode() == dns.rcode.SERVFAIL
        released.set()
        until(lambda: worker.stats()["cache"]["entries"] > 0, "the late answer is cached")
        asked = len(upstream.asked)
        assert answered(worker) == ["192.0.2.80"]
        assert len(upstream.asked) == asked


def test_a_client_gets_servfail_in_time_when_no_server_answers(worker: Worker) -> None:
    with Upstream(lambda _: []) as silent:
        asking(worker, silent)
        with worker.udp() as sock:
            sock.settimeout(5.0)  # the usual stub's patience
            sock.send(query("free.test"))
            found = dns.message.from_wire(sock.recv(4096))
        assert found.rcode() == dns.rcode.SERVFAIL
        assert extended(found)[0] == 22
        assert "did not answer" in extended(found)[1]
        assert len(silent.asked) == 3


def test_a_closed_port_is_an_error_of_the_network(worker: Worker) -> None:
    with Upstream(lambda _: []) as gone:
        asking(worker, gone)
    found = worker.asked(query("free.test"))
    assert found.rcode() == dns.rcode.SERVFAIL
    assert extended(found) == (23, f"udp://127.0.0.1:{gone.port} connection refused")


def test_without_edns_trouble_has_no_words(worker: Worker) -> None:
    with Upstream(failing(dns.rcode.SERVFAIL)) as upstream:
        asking(worker, upstream)
        found = worker.asked(query("free.test", edns=False))
        assert (found.rcode(), found.edns) == (dns.rcode.SERVFAIL, -1)


@pytest.mark.parametrize("rcode", [dns.rcode.FORMERR, dns.rcode.NOTIMP])
@pytest.mark.parametrize("bare", [True, False])
def test_a_server_that_does_not_know_edns_is_asked_without(worker: Worker, rcode: dns.rcode.Rcode, bare: bool) -> None:
    def old(asked: Asked) -> list[bytes]:
        if asked.message.edns < 0:
            return [right(asked)]
        made = dns.message.make_response(asked.message)
        made.use_edns(False)
        made.set_rcode(rcode)
        return [made.to_wire()[:4] + bytes(8) if bare else made.to_wire()]

    with Upstream(old) as upstream:
        asking(worker, upstream)
        for number in range(SEVERAL):
            assert not worker.stats()["upstreams"][0]["plain"]
            assert answered(worker, f"free.z{number}.test") == ["192.0.2.80"]
        assert [each.message.edns for each in upstream.asked] == [0, -1] * SEVERAL
        assert answered(worker, "other.test") == ["192.0.2.80"]
        assert [each.message.edns for each in upstream.asked[2 * SEVERAL :]] == [-1]
        assert worker.stats()["upstreams"][0]["plain"]


# ── few queries ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_many_clients_of_one_question_are_one_query(worker: Worker) -> None:
    with Upstream(lambda asked: [Late(0.3, right(asked))]) as upstream, contextlib.ExitStack() as stack:
        asking(worker, upstream)
        clients = [stack.enter_context(worker.udp("::1" if number % 2 else "127.0.0.1")) for number in range(200)]
        for number, client in enumerate(clients):
            client.send(query("Free.Test" if number % 3 else "free.test", ident=number, edns=number % 5 > 0))
        for number, client in enumerate(clients):
            found = dns.message.from_wire(client.recv(4096))
            assert (found.id, addresses(found), found.edns) == (number, ["192.0.2.80"], 0 if number % 5 else -1)
            assert str(found.question[0].name) == ("Free.Test." if number % 3 else "free.test.")
        assert len(upstream.asked) == 1
        assert answered(worker) == ["192.0.2.80"]
        assert len(upstream.asked) == 1
        assert addresses(worker.asked(query("free.test", do=True))) == ["192.0.2.80"]
        assert len(upstream.asked) == 2


def test_conditional_zones_go_where_they_belong(worker: Worker) -> None:
    with Upstream(good) as everyday, Upstream(lambda asked: [right(asked, "192.0.2.81")]) as inside:
        worker.policy(
            "alipay.example",
            dns={
                "allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10,
                "upstream": [f"udp://127.0.0.1:{everyday.port}"],
                "forward": {"corp.test": [f"udp://127.0.0.1:{inside.port}"], "10.in-addr.arpa": [f"udp://127.0.0.1:{inside.port}"]},
                "hosts": {"nas.lan": ["192.0.2.7", "2001:db8::7"]},
            },
        )  # fmt: skip
        assert answered(worker, "free.test") == ["192.0.2.80"]
        assert answered(worker, "host.corp.test") == ["192.0.2.81"]
        assert answered(worker, "1.0.0.10.in-addr.arpa") == ["192.0.2.81"]
        assert answered(worker, "nas.lan") == ["192.0.2.7"]
        assert addresses(worker.asked(query("nas.lan", "AAAA"))) == ["2001:db8::7"]
        assert addresses(worker.asked(query("7.2.0.192.in-addr.arpa", "PTR"))) == ["nas.lan."]
        assert (len(everyday.asked), len(inside.asked)) == (1, 2)


def test_an_expired_answer_is_given_out_when_the_upstream_is_gone(worker: Worker) -> None:
    def short(asked: Asked) -> list[bytes]:
        return [right(asked, ttl=1)]

    with Upstream(short) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]
        before = worker.stats()["cache"]["stale"]
    time.sleep(1.1)
    found = worker.asked(query("free.test"))
    assert addresses(found) == ["192.0.2.80"]
    assert extended(found)[0] == 3
    assert worker.stats()["cache"]["stale"] == before + 1


def test_an_old_answer_is_given_out_while_the_upstream_is_silent(worker: Worker) -> None:
    """In less than two seconds, and the question goes on."""
    talking = True

    def script(asked: Asked) -> list[bytes]:
        return [right(asked, ttl=1)] if talking else []

    with Upstream(script) as upstream:
        asking(worker, upstream)
        assert answered(worker) == ["192.0.2.80"]
        talking = False
        time.sleep(1.1)
        found = worker.asked(query("free.test"))
        assert addresses(found) == ["192.0.2.80"]
        assert worker.stats()["counters"]["pending"] == 1


def test_sockets_to_upstreams_are_pooled_and_given_back(worker: Worker) -> None:
    with Upstream(lambda asked: [right(asked)]) as upstream:
        asking(worker, upstream)
        before = len(os.listdir(f"/proc/{worker.process.pid}/fd"))
        for number in range(1500):
            worker.asked(query(f"pooled{number}.test"))
        ports = Counter(each.port for each in upstream.asked)
        assert len(ports) > 200
        assert max(ports.values()) <= 64, "a port is given up after 64 questions"
        assert len(os.listdir(f"/proc/{worker.process.pid}/fd")) <= before + SOCKETS
