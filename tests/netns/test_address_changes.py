"""The address of this machine changes while questions go to an upstream: no client gets SERVFAIL for that."""

from collections.abc import Callable, Iterator

import dns.message
import dns.rcode
import pytest

from support.playbook import query
from support.secure import Secure
from support.upstream import Upstream, good
from support.worker import Worker
from tools.rig import UPSTREAM4, WAN4, Rig, until

pytestmark = pytest.mark.root

OLD, NEW = f"{WAN4}.1", f"{WAN4}.9"
WARM = 200  # questions after which most sockets to the upstream are open


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.fixture(params=["udp", "tcp"])
def upstream(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Upstream | Secure]:
    """A good server on the internet, asked over UDP or over connections that it keeps."""

    def serve() -> Upstream | Secure:
        return Upstream(good, address=UPSTREAM4) if request.param == "udp" else Secure(None, address=UPSTREAM4)

    reset(rig)
    with rig.within("internet", serve) as server:
        yield server


def settings(upstream: Upstream | Secure) -> dict[str, object]:
    scheme = "tcp" if isinstance(upstream, Secure) else "udp"
    servers = [f"{scheme}://{UPSTREAM4}:{upstream.port}"]
    return {"allow_from": ["127.0.0.0/8"], "block_mode": "nxdomain", "block_ttl": 10, "upstream": servers}


def replaced(rig: Rig) -> None:
    """The old address is gone, as after a new lease."""
    rig.run("gateway", "ip", "address", "add", f"{NEW}/24", "dev", "wan0")
    rig.run("gateway", "ip", "address", "del", f"{OLD}/24", "dev", "wan0")
    rig.run("gateway", "ip", "address", "replace", f"{NEW}/24", "dev", "wan0")


def elsewhere(rig: Rig) -> None:
    """The old address stays, but what is sent to it does not arrive, as after a change of the way out."""
    rig.run("gateway", "ip", "address", "add", f"{NEW}/24", "dev", "wan0")
    rig.run("gateway", "ip", "route", "replace", f"{UPSTREAM4}/32", "dev", "wan0", "src", NEW)
    rig.run("internet", "ip", "route", "replace", "blackhole", f"{OLD}/32")


def reset(rig: Rig) -> None:
    """As it was."""
    rig.run("internet", "ip", "route", "del", "blackhole", f"{OLD}/32", check=False)
    rig.run("gateway", "ip", "route", "del", f"{UPSTREAM4}/32", check=False)
    rig.run("gateway", "ip", "address", "flush", "dev", "wan0", "to", f"{WAN4}.0/24")
    rig.run("gateway", "ip", "address", "add", f"{OLD}/24", "dev", "wan0")


@pytest.mark.parametrize("change", [replaced, elsewhere])
def test_questions_are_asked_from_the_new_address(rig: Rig, upstream: Upstream | Secure, change: Callable[[Rig], None]) -> None:
    with rig.within("gateway", Worker) as worker:
        worker.start("alipay.example", dns=settings(upstream))

        def rcodes(first: int, many: int) -> set[str]:
            with rig.within("gateway", worker.udp) as client:
                found = set()
                for number in range(first, first + many):
                    client.send(query(f"n{number}.test"))
                    found.add(dns.rcode.to_text(dns.message.from_wire(client.recv(4096)).rcode()))
                return found

        until(lambda: rcodes(0, 1) == {"NOERROR"}, "the upstream is reached")
        assert rcodes(1, WARM) == {"NOERROR"}
        change(rig)
        assert rcodes(1000, WARM) == {"NOERROR"}


def test_settings_that_follow_a_change_replace_what_asks_from_the_old_address(rig: Rig, upstream: Upstream | Secure) -> None:
    """The supervisor sends them when it notices the change: no question has to find out."""
    with rig.within("gateway", Worker) as worker:
        worker.start("alipay.example", dns=settings(upstream))

        def rcode(name: str) -> str:
            with rig.within("gateway", worker.udp) as client:
                client.send(query(name))
                return dns.rcode.to_text(dns.message.from_wire(client.recv(4096)).rcode())

        until(lambda: rcode("first.test") == "NOERROR", "the upstream is reached")
        elsewhere(rig)
        worker.policy("alipay.example", dns=settings(upstream))
        assert rcode("second.test") == "NOERROR"
        assert {each.address for each in upstream.asked if "second" in str(each.message.question[0].name)} == {NEW}
