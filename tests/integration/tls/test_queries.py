"""Upstreams over TLS: nothing is sent in clear text, what a query holds, and what a reply keeps of the answer."""

from collections.abc import Callable
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from support.agent import free_port
from support.playbook import query
from support.secure import NAME, REFUSED, Authority, Pair, Secure, Talk, Unbound, context, extended
from support.upstream import Asked, Upstream, right
from support.worker import Worker, answered, bound
from tools.rig import until


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
