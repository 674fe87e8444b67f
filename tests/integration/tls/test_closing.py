"""Upstreams that close connections early, take few of them, or stop in the middle: every question is answered all the same."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterator

import dns.message
import dns.rcode
import pytest

from embargo.daemon.resolve.pipeline import MOST_CONNECTIONS
from support.playbook import query
from support.secure import Pair, Secure, Talk, context, faithful
from support.upstream import right
from support.worker import Worker

SCHEMES = ("tcp", "tls")
fresh = (f"n{number}.test" for number in itertools.count())


@pytest.fixture(params=SCHEMES)
def serving(request: pytest.FixtureRequest, pair: Pair) -> Callable[[Callable[[Talk], None]], Secure]:
    return lambda script: Secure(context(pair) if request.param == "tls" else None, script)


@pytest.fixture
def ask(request: pytest.FixtureRequest, asking: Callable[..., Worker]) -> Callable[[Secure], Worker]:
    tls = request.node.callspec.params["serving"] == "tls"
    return lambda server: asking(server.port if tls else f"tcp://127.0.0.1:{server.port}")


def burst(worker: Worker, many: int, names: Iterator[str] = fresh) -> list[str]:
    """Many different questions at once; the rcodes of their answers."""
    with worker.udp() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for ident in range(many):
            client.send(query(next(names), ident=ident))
        found = [dns.message.from_wire(client.recv(4096)) for _ in range(many)]
    assert {each.id for each in found} == set(range(many))
    return [dns.rcode.to_text(each.rcode()) for each in found]


def after(answers: int) -> Callable[[Talk], None]:
    def script(talk: Talk) -> None:
        for _ in range(answers):
            if (asked := talk.hear()) is None:
                return
            talk.say(right(asked))

    return script


@pytest.mark.parametrize("answers", [1, 3])
def test_a_server_that_closes_after_a_few_answers(
    serving: Callable[..., Secure], ask: Callable[[Secure], Worker], answers: int
) -> None:
    with serving(after(answers)) as server:
        worker = ask(server)
        assert burst(worker, 60) == ["NOERROR"] * 60
        made = server.tried
        assert burst(worker, 60) == ["NOERROR"] * 60
        assert [row["failed"] for row in worker.stats()["upstreams"]] == [0]
        assert server.tried - made >= 60 // answers
        again = len(server.asked) - 120
        assert again < 60, "what it leaves unanswered is learnt, and asked for no more"


def test_a_question_that_crosses_the_end_of_an_idle_connection_teaches_nothing(
    serving: Callable[..., Secure], ask: Callable[[Secure], Worker]
) -> None:
    def crossing(talk: Talk) -> None:
        if talk.number > 1:
            faithful(talk)
        after(1)(talk)
        talk.hear()

    with serving(crossing) as server:
        worker = ask(server)
        assert burst(worker, 1) + burst(worker, 1) == ["NOERROR"] * 2
        assert burst(worker, 20) == ["NOERROR"] * 20
        assert server.tried <= 3, "all on one connection; on a second one if that is starved for long"


def test_a_server_that_takes_few_connections(serving: Callable[..., Secure], ask: Callable[[Secure], Worker]) -> None:
    """It closes those beyond four at once, and each after one answer."""
    places = threading.Semaphore(4)

    def few(talk: Talk) -> None:
        if not places.acquire(blocking=False):
            return
        try:
            after(1)(talk)
        finally:
            places.release()

    with serving(few) as server:
        assert burst(ask(server), 60).count("NOERROR") == 60
        assert server.tried < 60 + 2 * MOST_CONNECTIONS


def test_a_question_that_ends_each_connection_costs_only_itself(
    serving: Callable[..., Secure], ask: Callable[[Secure], Worker]
) -> None:
    def fragile(talk: Talk) -> None:
        while (asked := talk.hear()) is not None and "poison" not in str(asked.message.question[0].name):
            talk.say(right(asked))

    names = [next(fresh) for _ in range(20)]
    names[10] = "poison.test"
    with serving(fragile) as server:
        rcodes = burst(ask(server), 20, iter(names))
        assert (rcodes.count("NOERROR"), rcodes.count("SERVFAIL")) == (19, 1)


def test_a_server_that_stops_in_the_middle(serving: Callable[..., Secure], ask: Callable[[Secure], Worker]) -> None:
    """What it has not answered is asked again on another connection, before the clients' time is over."""

    def stalling(talk: Talk) -> None:
        if talk.number > 1:
            faithful(talk)
        after(5)(talk)
        while talk.hear() is not None:
            pass

    with serving(stalling) as server:
        assert burst(ask(server), 20) == ["NOERROR"] * 20
        assert server.tried == 2


def test_each_question_is_a_tls_record_of_its_own(asking: Callable[..., Worker], pair: Pair) -> None:
    """dnsdist up to 1.7 answers the first of those in a record and forgets the rest."""

    def forgetful(talk: Talk) -> None:
        for asked in talk.records():
            talk.say(right(asked[0]))

    with Secure(context(pair), forgetful) as server:
        worker = asking(server.port)
        assert burst(worker, 60) == ["NOERROR"] * 60
        assert (len(server.asked), server.tried) == (60, 1)
