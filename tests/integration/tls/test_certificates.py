"""Upstreams over TLS: whether a server proves its name, and what happens when other authorities are trusted."""

import itertools
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from embargo.daemon.resolve import pipeline
from support import secure
from support.agent import APPS, running
from support.playbook import query
from support.secure import (
    NAME,
    REFUSED,
    SILENT,
    Authority,
    Pair,
    Secure,
    Talk,
    context,
    extended,
    faithful,
    not_ours,
    once,
    refused,
    row,
)
from support.upstream import right
from support.worker import Worker, answered
from tools.rig import until

# ── the certificate and its name ─────────────────────────────────────────────────────────────────────────────────────────


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


# ── other authorities while queries wait ─────────────────────────────────────────────────────────────────────────────────


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
            while talk.hear() is not None:
                pass
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
            waiting.send(query("waiting.test"))
            until(lambda: server.tried == 2, "both are overdue, and asked elsewhere as well")
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
