"""Upstreams over TLS: real handshakes, certificates of a throw-away authority, servers that misbehave, and Unbound."""

import contextlib
import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from embargo.daemon.resolve import pipeline, tls
from embargo.dns.upstream import Server
from support import secure
from support.agent import APPS, free_port, running
from support.playbook import query
from support.secure import NAME, Authority, Pair, Secure, Talk, Unbound, context, faithful
from support.upstream import Asked, Upstream, right
from support.worker import Worker, bound, framed, read
from tools.rig import until

REFUSED = 23  # EDE: network error
SILENT = 22  # EDE: no reachable authority


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(directory: Path) -> Authority:
    return Authority(directory)


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    """For the name, and for the address."""
    return authority.sign("good", f"DNS:{NAME},IP:127.0.0.1")


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    with Worker() as started:
        yield started.start("alipay.example")


@pytest.fixture
def asking(shared: Worker, authority: Authority) -> Callable[..., Worker]:
    """A worker that asks these and knows nothing else. A port is asked over TLS, by the name of the certificate."""

    def ask(*servers: int | str, authorities: str | None = None) -> Worker:
        settings = {
            "allow_from": ["127.0.0.0/8", "::1/128"], "block_mode": "nxdomain", "block_ttl": 10,
            "upstream": [f"tls://127.0.0.1:{each}#{NAME}" if isinstance(each, int) else each for each in servers],
            "tls_ca": authority.own.text if authorities is None else authorities,
        }  # fmt: skip
        shared.policy("alipay.example", dns=settings | {"upstream": ["udp://127.0.0.1:1"], "tls_ca": "another"})
        shared.policy("alipay.example", dns=settings)
        return shared

    return ask


def addresses(found: dns.message.Message) -> list[str]:
    return [str(rdata) for rrset in found.answer for rdata in rrset]


def answered(worker: Worker, name: str = "free.test") -> list[str]:
    found = worker.asked(query(name))
    assert found.rcode() == dns.rcode.NOERROR, found
    return addresses(found)


def refused(worker: Worker, name: str = "free.test") -> tuple[int, str]:
    """Code and text of the extended error; the client is connections in the time that a stub has."""
    with worker.udp() as sock:
        sock.settimeout(5.0)
        sock.send(query(name))
        found = dns.message.from_wire(sock.recv(4096))
    return extended(found)


def extended(found: dns.message.Message) -> tuple[int, str]:
    assert found.rcode() == dns.rcode.SERVFAIL, found
    (option,) = [each for each in found.options if isinstance(each, dns.edns.EDEOption)]
    return int(option.code), str(option.text)


def row(worker: Worker) -> dict[str, object]:
    (found,) = worker.stats()["upstreams"]
    return dict(found)


# ── who it is ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_right_name_is_answered_and_named_in_the_handshake(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair)) as server:
        worker = asking(server.port)
        assert answered(worker) == ["192.0.2.80"]
        assert server.names == [NAME]
        assert row(worker)["server"] == f"tls://127.0.0.1:{server.port}#{NAME}"
        assert row(worker)["healthy"]


def test_without_a_name_the_certificate_is_for_the_address(
    asking: Callable[..., Worker], pair: Pair, authority: Authority
) -> None:
    with Secure(context(pair)) as server:
        assert answered(asking(f"tls://127.0.0.1:{server.port}")) == ["192.0.2.80"]
        assert server.names == [None], "an address is no server name (RFC 6066 section 3)"
    with Secure(context(authority.sign("name-alone"))) as server:
        assert refused(asking(f"tls://127.0.0.1:{server.port}")) == (
            REFUSED, f"tls://127.0.0.1:{server.port} has no certificate for 127.0.0.1",
        )  # fmt: skip


def not_ours(directory: Path) -> Pair:
    return Authority(directory, "stranger").sign("stranger-server")


CERTIFICATES: dict[str, tuple[Callable[[Authority, Path], Pair], str]] = {
    "another name": (lambda a, _: a.sign("other", "DNS:other.example"), f"has no certificate for {NAME}"),
    "the name as its common name": (lambda a, _: a.sign("common", "", subject=NAME), f"has no certificate for {NAME}"),
    "expired": (lambda a, _: a.sign("expired", days=-1), "has a certificate that has expired"),
    "self-signed": (
        lambda _, d: secure.self_signed(d, "alone", "server", f"DNS:{NAME}"), "has a self-signed certificate",
    ),
    "another authority": (
        lambda _, d: not_ours(d), "has a certificate of an authority that is not trusted here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_server_that_does_not_prove_its_name_is_not_asked(
    asking: Callable[..., Worker], authority: Authority, directory: Path, case: str
) -> None:
    make, words = CERTIFICATES[case]
    with Secure(context(make(authority, directory))) as server:
        worker = asking(server.port)
        assert refused(worker) == (REFUSED, f"tls://127.0.0.1:{server.port}#{NAME} {words}")
        assert (row(worker)["healthy"], row(worker)["last_error"]) == (False, f"tls://127.0.0.1:{server.port}#{NAME} {words}")
        assert server.asked == []


def test_a_server_of_its_own_certificate_is_trusted_by_that_certificate(asking: Callable[..., Worker], directory: Path) -> None:
    own = secure.self_signed(directory, "pinned", "server", f"DNS:{NAME}")
    with Secure(context(own)) as server:
        assert answered(asking(server.port, authorities=own.text)) == ["192.0.2.80"]


def test_without_authorities_of_ours_the_systems_count(pair: Pair, authority: Authority, directory: Path) -> None:
    """As the store is at each connection: this one is a file of the test's, in place of Debian's."""
    store = directory / "store.pem"
    store.write_text(not_ours(directory).text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(store))
        patch.setenv("SSL_CERT_DIR", str(directory / "none"))
        with Worker() as worker, Secure(context(pair)) as server:
            worker.start("alipay.example", dns={"upstream": [f"tls://127.0.0.1:{server.port}#{NAME}"]})
            assert refused(worker)[0] == REFUSED
            store.write_text(authority.own.text)
            until(lambda: worker.asked(query("free.test")).rcode() == dns.rcode.NOERROR, "the new store counts", 20)


def old_tls(pair: Pair) -> ssl.SSLContext:
    made = context(pair)
    made.set_ciphers("ALL:@SECLEVEL=0")
    made.minimum_version = ssl.TLSVersion.TLSv1
    made.maximum_version = ssl.TLSVersion.TLSv1_1
    return made


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_tls_1_1_is_refused(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(old_tls(pair)) as server:
        assert refused(asking(server.port)) == (
            REFUSED, f"tls://127.0.0.1:{server.port}#{NAME} speaks no TLS 1.2 or later",
        )  # fmt: skip
        assert server.asked == []


def test_tls_1_2_will_do(asking: Callable[..., Worker], pair: Pair) -> None:
    made = context(pair)
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    with Secure(made) as server:
        assert answered(asking(server.port)) == ["192.0.2.80"]


# ── never in clear ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_ever_asked_in_clear(asking: Callable[..., Worker]) -> None:
    """Whoever is there over UDP and TCP gets the beginning of a handshake, and no more when that leads nowhere."""
    udp, tcp = bound(["127.0.0.1"])
    with udp, tcp:
        port = tcp.getsockname()[1]
        worker = asking(port)
        with worker.udp() as client:
            client.send(query("secret.test"))
            connection, _ = tcp.accept()
            with connection:
                hello = connection.recv(4096)
                assert (hello[:2], b"secret" in hello) == (b"\x16\x03", False)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n")
                assert b"secret" not in connection.recv(4096)
            found = dns.message.from_wire(client.recv(4096))
        assert extended(found) == (REFUSED, f"tls://127.0.0.1:{port}#{NAME} does not speak TLS there")
        udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(4096)


def test_the_next_server_is_asked_when_one_proves_nothing(
    asking: Callable[..., Worker], authority: Authority, pair: Pair
) -> None:
    with Secure(context(authority.sign("old", days=-1))) as bad, Secure(context(pair)) as second:
        worker = asking(bad.port, second.port)
        assert answered(worker) == ["192.0.2.80"]
        assert answered(worker, "other.test") == ["192.0.2.80"]
        assert (bad.asked, len(second.asked)) == ([], 2)
        assert bad.tried == 1, "it is set aside"


def test_queries_are_padded_and_ask_for_what_was_validated(asking: Callable[..., Worker], pair: Pair) -> None:
    with Secure(context(pair)) as server:
        worker = asking(server.port)
        for length in (1, 30, 63):
            answered(worker, f"{'x' * length}.{'y' * 50}.test")
            worker.asked(query(f"{'x' * length}.test", do=True))
        assert [len(each.wire) % 128 for each in server.asked] == [0] * 6, "RFC 8467"
        assert all(each.message.flags & dns.flags.AD for each in server.asked)
        assert [bool(each.message.ednsflags & dns.flags.DO) for each in server.asked] == [False, True] * 3


def validated(asked: Asked) -> bytes:
    made = dns.message.from_wire(right(asked))
    made.flags |= dns.flags.AD
    return made.to_wire()


def vouching(talk: Talk) -> None:
    while (asked := talk.hear()) is not None:
        talk.say(validated(asked))


@pytest.mark.parametrize("accelerated", ["native", "none"])
def test_the_ad_bit_is_for_clients_that_ask_for_it_over_tls(pair: Pair, authority: Authority, accelerated: str) -> None:
    """Fresh, from the cache and from its shortcut; never what came in clear."""
    with Worker(accelerated=accelerated) as worker, Secure(context(pair), vouching) as server:
        dns_ = {"upstream": [f"tls://127.0.0.1:{server.port}#{NAME}"], "tls_ca": authority.own.text}
        worker.start("alipay.example", dns=dns_)
        for _ in range(3):
            assert said(worker) == [True, False, True, False]
        assert len(server.asked) == 2, "with DO and without"
        with Upstream(lambda asked: [validated(asked)]) as clear:
            base = {"allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10}
            for scheme in ("udp", "tcp"):
                worker.policy("alipay.example", dns=base | {"upstream": [f"{scheme}://127.0.0.1:{clear.port}"]})
                assert said(worker) == [False] * 4


def said(worker: Worker) -> list[bool]:
    """AD in the replies to a query with AD, with neither, with DO, and to one for a blocked name with AD."""
    queries = (
        query("free.test", flags=dns.flags.RD | dns.flags.AD), query("free.test", flags=dns.flags.RD),
        query("free.test", do=True, flags=dns.flags.RD), query("alipay.example", flags=dns.flags.RD | dns.flags.AD),
    )  # fmt: skip
    return [bool(worker.asked(each).flags & dns.flags.AD) for each in queries]


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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
        assert server.tried <= pipeline.CONNECTIONS
        assert len(server.asked) == 600


def once(talk: Talk) -> None:
    """One answer, and the connection is closed while nothing is awaited."""
    asked = talk.hear()
    assert asked is not None
    talk.say(right(asked))


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
        assert "did not answer over TLS in 1.0 s" in str(row(worker)["last_error"])


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


def test_other_authorities_take_effect_at_once(asking: Callable[..., Worker], pair: Pair, directory: Path) -> None:
    with Secure(context(pair)) as server:
        assert answered(asking(server.port)) == ["192.0.2.80"]
        worker = asking(server.port, authorities=not_ours(directory).text)
        assert refused(worker)[1].endswith("of an authority that is not trusted here")
        assert answered(asking(server.port), "other.test") == ["192.0.2.80"]


def test_questions_to_a_server_that_is_no_longer_trusted_are_not_answered_by_it(
    asking: Callable[..., Worker], pair: Pair, directory: Path
) -> None:
    """The authorities change while the handshake goes on."""
    waiting = threading.Event()
    with Secure(context(pair), before=lambda: waiting.wait(10)) as server:
        worker = asking(server.port)
        stranger = {"allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10}
        stranger |= {"upstream": [f"tls://127.0.0.1:{server.port}#{NAME}"], "tls_ca": not_ours(directory).text}
        with worker.udp() as client:
            client.send(query("free.test"))
            until(lambda: server.tried == 1, "the handshake has begun")
            worker.policy("alipay.example", dns=stranger)
            waiting.set()
            assert extended(dns.message.from_wire(client.recv(4096)))[0] in (REFUSED, SILENT)
        assert server.asked == []


def test_an_answer_of_a_retired_connection_that_is_no_longer_trusted_is_ignored(
    asking: Callable[..., Worker], pair: Pair, directory: Path
) -> None:
    """A connection that is left as dead goes on with what waits there, unless the authorities change."""
    doubted = threading.Event()

    def late(talk: Talk) -> None:
        if talk.number > 1:
            faithful(talk)
            return
        once(talk)
        talk.hear()  # never answered: the connection is left
        asked = talk.hear()
        doubted.wait(10)
        assert asked is not None
        talk.say(right(asked))

    with Secure(context(pair), late) as server:
        worker = asking(server.port)
        stranger = {"allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10}
        stranger |= {"upstream": [f"tls://127.0.0.1:{server.port}#{NAME}"], "tls_ca": not_ours(directory).text}
        assert answered(worker, "first.test") == ["192.0.2.80"]
        with worker.udp() as silent, worker.udp() as waiting:
            silent.send(query("silent.test"))
            time.sleep(0.5)  # so that this one still waits when the other has waited long enough
            waiting.send(query("waiting.test"))
            until(lambda: server.tried == 2, "the silent one is asked elsewhere")
            worker.policy("alipay.example", dns=stranger)
            doubted.set()
            assert extended(dns.message.from_wire(waiting.recv(4096)))[0] in (REFUSED, SILENT)


def test_all_that_waits_when_the_authorities_change_is_asked_again(
    asking: Callable[..., Worker], pair: Pair, authority: Authority
) -> None:
    """On two connections: what waited on the first used to be put on the second, and to fail with that."""
    changed = threading.Event()

    def held(talk: Talk) -> None:
        if changed.is_set():
            faithful(talk)
        while talk.hear() is not None:
            pass

    many = pipeline.SHARE + 20
    with Secure(context(pair), held) as server:
        worker = asking(server.port)
        with worker.udp() as client:
            for number in range(many):
                client.send(query(f"held{number}.test", ident=number))
            until(lambda: len(server.asked) == many, "all are asked")
            assert server.tried == 2
            changed.set()
            dns_ = {"allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10}
            dns_ |= {"upstream": [f"tls://127.0.0.1:{server.port}#{NAME}"], "tls_ca": authority.own.text + "\n"}
            worker.policy("alipay.example", dns=dns_)
            found = [dns.message.from_wire(client.recv(4096)) for _ in range(many)]
        assert {message.rcode() for message in found} == {dns.rcode.NOERROR}
        assert (len(server.asked), row(worker)["failed"]) == (2 * many, 0)


def test_a_blocked_name_in_an_answer_over_tls_is_blocked(asking: Callable[..., Worker], pair: Pair, directory: Path) -> None:
    port = free_port()
    records = ("leads.zone.test. 300 IN CNAME pay.alipay.example.", "clean.zone.test. 300 IN A 192.0.2.81")
    with Unbound(directory, pair, port, records):
        worker = asking(port)
        until(lambda: worker.asked(query("ready.test")).rcode() == dns.rcode.NOERROR, "Unbound answers", 20)
        assert answered(worker, "clean.zone.test") == ["192.0.2.81"]
        out = worker.dig("leads.zone.test", "A")
        assert "status: NXDOMAIN" in out
        assert "EDE: 15 (Blocked): (app=alipay function=payment" in out


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


# ── the whole agent ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_agent_says_what_is_wrong_and_follows_the_file(tmp_path: Path, authority: Authority, pair: Pair) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("# Größe zählt nicht\n" + authority.own.certificate.read_text())
    ca.chmod(0o600)
    with Secure(context(pair)) as server, Secure(context(authority.sign("wrong", "DNS:other.example"))) as wrong:
        servers = [f"tls://127.0.0.1:{server.port}#{NAME}", f"tls://127.0.0.1:{wrong.port}#{NAME}"]
        dns_ = {"upstream": servers[:1], "tls_ca": str(ca)}
        sections: dict[str, Mapping[str, object]] = {"dns": dns_, "dns.forward": {"corp": servers[1:]}}
        fresh = itertools.count()  # names that nobody has an answer for
        with running(tmp_path, prefix=(), apps=APPS, **sections) as agent:
            assert agent.rcode("free.test") == "NOERROR"
            assert agent.rcode("host.corp") == "SERVFAIL"
            rows = {each["server"]: each for each in agent.answer("status")["upstreams"]}
            assert rows[servers[0]]["healthy"]
            said = f"{servers[1]} has no certificate for {NAME}"
            assert rows[servers[1]]["last_error"] == said
            assert said in " ".join(agent.cli("status").stdout.split())
            problems = agent.answer("check", status=1)["problems"]
            assert [each["message"] for each in problems] == [f"dns.forward: {said}"]
            until(lambda: any(e["server"] == servers[1] and e["reason"] == said for e in agent.events("upstream")), "an event")

            stranger = not_ours(tmp_path)
            ca.write_text(stranger.certificate.read_text())
            until(lambda: agent.rcode(f"{next(fresh)}.test") == "SERVFAIL", "what stands in the file counts")
            ca.write_text("no certificate\n")
            until(lambda: f"{ca}: it has no certificate" in agent.errors, "the reload is refused")
            assert "it has no certificate" in agent.cli("check", status=1).stdout
            ca.write_text(authority.own.certificate.read_text())
            until(lambda: agent.rcode(f"{next(fresh)}.test") == "NOERROR", "the first authority counts again", 40)
