"""Connections to upstreams over TLS: many queries on few, when one closes, fails or is slow, and resumed sessions."""

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from embargo.daemon.resolve import pipeline, tls
from embargo.dns.upstream import Server
from support.agent import free_port
from support.playbook import query
from support.secure import (
    NAME,
    REFUSED,
    SILENT,
    Authority,
    Pair,
    Secure,
    Talk,
    Unbound,
    context,
    faithful,
    once,
    refused,
    row,
)
from support.upstream import Asked, right
from support.worker import Worker, addresses, answered, framed, read
from tools.rig import until


def backwards(talk: Talk) -> None:
    """Three questions, and the answers in the other order."""
    heard = [talk.hear() for _ in range(3)]
    talk.say(*[right(asked, f"192.0.2.{len(heard) - number}") for number, asked in enumerate(heard) if asked][::-1])
    faithful(talk)


def test_answers_may_come_in_any_order(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair), backwards) as server:
        worker = asking(server.port)
        with worker.udp() as client:
            for number in range(3):
                client.send(query(f"n{number}.test", ident=number))
            found = {message.id: message for message in (dns.message.from_wire(client.recv(4096)) for _ in range(3))}
        order = {str(asked.message.question[0].name): 3 - number for number, asked in enumerate(server.asked)}
        for number in range(3):
            assert addresses(found[number]) == [f"192.0.2.{order[f'n{number}.test.']}"]
        assert (server.tried, row(worker)["failed"]) == (1, 0)


def test_a_thousand_questions_are_one_connection(
    asking: Callable[..., Worker], pair: Pair, directory: Path
) -> None:  # fmt: skip
    port = free_port()
    with Unbound(directory, pair, port, ()):
        worker = asking(port)
        until(lambda: worker.asked(query("ready.test")).rcode() == dns.rcode.NOERROR, "Unbound answers", 20)
        for number in range(1000):
            assert answered(worker, f"n{number}.test") == ["192.0.2.80"]
        connections = subprocess.run(
            ["ss", "-Htan", "dport", "=", str(port)], capture_output=True, text=True, check=True
        ).stdout
        assert [line.split()[0] for line in connections.splitlines()].count("ESTAB") == 1
        assert "TIME-WAIT" not in connections


def test_many_at_once_have_few_connections(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair)) as server:
        worker = asking(server.port)
        with worker.udp() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for number in range(600):
                client.send(query(f"many{number}.test", ident=number))
            found = {dns.message.from_wire(client.recv(4096)).id for _ in range(600)}
        assert len(found) == 600
        assert server.tried < 10, f"{pipeline.CONNECTIONS}, and more only when a server that is starved stops for long"


def test_a_connection_that_the_server_closes_when_idle_costs_nothing(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair), once) as server:
        worker = asking(server.port)
        for number in range(5):
            assert answered(worker, f"n{number}.test") == ["192.0.2.80"]
        assert (row(worker)["failed"], len(server.asked)) == (0, 5)


def one_and_a_half(talk: Talk) -> None:
    """One answer; the connection is closed when the next question has come."""
    once(talk)
    talk.hear()


def test_what_waits_on_a_connection_that_breaks_is_asked_again(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair), one_and_a_half) as server:
        worker = asking(server.port)
        assert answered(worker, "first.test") == ["192.0.2.80"]
        assert answered(worker, "second.test") == ["192.0.2.80"]
        assert row(worker)["failed"] == 0
        assert [str(each.message.question[0].name) for each in server.asked] == ["first.test.", "second.test.", "second.test."]


def quiet_after_one(talk: Talk) -> None:
    """The first connection goes dead after one answer: what is sent there is lost."""
    if talk.number > 1:
        faithful(talk)
        return
    once(talk)
    while talk.hear() is not None:
        pass


def test_a_connection_where_nothing_comes_any_more_is_left(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair), quiet_after_one) as server:
        worker = asking(server.port)
        assert answered(worker, "first.test") == ["192.0.2.80"]
        assert answered(worker, "second.test") == ["192.0.2.80"]
        assert server.tried == 2
        assert [str(each.message.question[0].name) for each in server.asked] == ["first.test.", "second.test.", "second.test."]
        assert "did not answer over TLS in 0.5 s" in str(row(worker)["last_error"])


def test_a_server_that_is_always_late_is_used(asking: Callable[..., Worker], pair: Pair) -> None:
    """What was asked first is answered first, though it has been asked again meanwhile."""

    def late(talk: Talk) -> None:
        while (asked := talk.hear()) is not None:
            time.sleep(1.4)
            talk.say(right(asked))

    with Secure(context(pair), late) as server:
        worker = asking(server.port)
        assert answered(worker) == ["192.0.2.80"]
        assert row(worker)["healthy"]
        assert answered(worker, "other.test") == ["192.0.2.80"]


def test_a_server_that_never_answers_fails(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair), lambda talk: (talk.hear(), None)[1]) as server:
        worker = asking(server.port)
        assert refused(worker) == (
            REFUSED, f"tls://127.0.0.1:{server.port}#{NAME} closed the TLS connection without an answer",
        )  # fmt: skip
    with Secure(context(pair), lambda talk: (talk.hear(), talk.hear(), None)[2]) as server:
        assert refused(asking(server.port))[0] == SILENT


def test_a_server_that_is_started_again_is_asked_again_and_goes_on_from_its_session(
    asking: Callable[..., Worker], pair: Pair
) -> None:
    made = context(pair)
    with Secure(made) as server:
        port = server.port
        worker = asking(port)
        assert answered(worker) == ["192.0.2.80"]
    code, text = refused(worker, "gone.test")
    assert (code, text) == (REFUSED, f"tls://127.0.0.1:{port}#{NAME} over TLS: connection refused")
    with Secure(made, port=port) as server:
        until(lambda: worker.asked(query("back.test")).rcode() == dns.rcode.NOERROR, "it is asked again", 20)
        assert server.resumed == [True]
    with Secure(context(pair), port=port) as server:
        until(lambda: worker.asked(query("anew.test")).rcode() == dns.rcode.NOERROR, "without its keys too", 20)
        assert server.resumed == [False]


WHO = Server("127.0.0.1", 853, "tls", NAME)


def shaken(trust: tls.Trust, made: ssl.SSLContext, now: float) -> tuple[tls.Layer, bool]:
    """A connection with a server in memory that has answered something, and whether it goes on from a session."""
    layer = trust.open(WHO, now)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = made.wrap_bio(to_server, to_client, server_side=True)
    layer.begin(now)
    while not layer.ready:
        to_server.write(layer.take())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        layer.received(to_client.read(), now)
    to_server.write(layer.take())
    server.do_handshake()
    server.write(b"answer")  # behind the tickets
    assert layer.received(to_client.read(), now) == b"answer"
    return layer, bool(server.session_reused)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed_for_an_hour_from_the_look_at_the_certificate(
    pair: Pair, authority: Authority, version: ssl.TLSVersion
) -> None:
    """It used to be an hour from the end of the connection, and one that is of use never ends."""
    made = context(pair)
    made.maximum_version = version
    trust = tls.Trust(authority.own.text)
    first, _ = shaken(trust, made, 100.0)
    trust.remember(WHO, first)
    second, resumed = shaken(trust, made, 100.0 + tls.RESUME_SECONDS - 1)
    assert resumed
    trust.remember(WHO, second)
    assert not shaken(trust, made, 100.0 + tls.RESUME_SECONDS)[1], "the second has not looked at it again"


def test_a_slow_handshake_is_waited_for_in_the_end(asking: Callable[..., Worker], pair: Pair) -> None:
    """The question is given up by the first attempt, the connection is not."""
    with Secure(context(pair), before=lambda: time.sleep(1.4)) as server:
        worker = asking(server.port)
        assert answered(worker) == ["192.0.2.80"]
        assert (server.tried, len(server.asked)) == (1, 1)
        assert "did not finish the TLS handshake in 1.0 s" in str(row(worker)["last_error"])


def test_a_handshake_that_does_not_end_is_silence(asking: Callable[..., Worker]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, text = refused(asking(port))
        assert (code, text.rpartition(" in ")[0]) == (SILENT, f"tls://127.0.0.1:{port}#{NAME} did not finish the TLS handshake")


def test_tcp_upstreams_are_kept_too(asking: Callable[..., Worker]) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        worker = asking(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        client = stack.enter_context(worker.udp())
        client.send(query("n0.test"))
        connection = stack.enter_context(listener.accept()[0])
        for number in range(3):
            wire = read(connection)
            connection.sendall(framed(right(Asked(dns.message.from_wire(wire), wire, 0, tcp=True))))
            assert addresses(dns.message.from_wire(client.recv(4096))) == ["192.0.2.80"]
            assert len(wire) < 64, "padding is for what nobody else reads"
            client.send(query(f"n{number + 1}.test"))
