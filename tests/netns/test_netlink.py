"""Our writer against the real kernel: content replaced under traffic, refusals, what survives."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from embargo import ruleset
from embargo.daemon import netlink
from embargo.daemon.netlink import Nftables
from embargo.errors import FirewallError
from embargo.policy import Action, Class
from embargo.ruleset import TABLE, Spec
from tools.rig import LAN4, Rig, until

pytestmark = pytest.mark.root

PAY = Class("alipay", "payment")
BLOCKED, ALLOWED = "203.0.113.5", "203.0.113.6"
NETWORK = int.from_bytes(socket.inet_aton("198.18.0.0"))


def address(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text))


def spec(number: int, *, single: bool, filler: int = 0, **members: object) -> Spec:
    """BLOCKED as a single address, or at the end of a range, with so many other ranges before it."""
    ranges = [(4, NETWORK + 16 * n, NETWORK + 16 * n + 7, PAY) for n in range(filler)]
    last = address(BLOCKED)
    ranges.append((4, last if single else last - 1, last, PAY))
    made = Spec(number, ((PAY, Action.BLOCK),), tuple(ranges), log_group=8300)
    return made if not members else Spec(**{f: members.get(f, getattr(made, f)) for f in Spec.__dataclass_fields__})  # type: ignore[arg-type]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.serve_web()
        yield made


@pytest.fixture
def kernel(rig: Rig) -> Iterator[Nftables]:
    made = rig.within("gateway", Nftables)
    yield made
    made.close()


class Stream:
    """Datagrams to both addresses, as fast as one thread sends them, counted where they arrive."""

    def __init__(self, rig: Rig) -> None:
        self._send = rig.socket("client", socket.SOCK_DGRAM, ALLOWED)
        self.arrived = {BLOCKED: 0, ALLOWED: 0}
        self.sent = 0
        self._done = threading.Event()
        self._sockets = {text: self._listen(rig, text) for text in self.arrived}
        self._threads = [threading.Thread(target=self._count, args=(text, sock)) for text, sock in self._sockets.items()]
        self._threads.append(threading.Thread(target=self._flow))

    @staticmethod
    def _listen(rig: Rig, text: str) -> socket.socket:
        sock = rig.socket("internet", socket.SOCK_DGRAM, text)
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: none may be lost by the one who counts
        sock.bind((text, 9000))
        sock.settimeout(0.5)
        return sock

    def _flow(self) -> None:
        while not self._done.is_set() and self.sent < 400_000:
            for text in self.arrived:
                try:
                    self._send.sendto(b"x" * 18, (text, 9000))
                except OSError:
                    continue  # the reject of an earlier one
                self.sent += text == ALLOWED
            if not self.sent % 20:
                time.sleep(0.001)  # the counting threads have a turn

    def _count(self, text: str, sock: socket.socket) -> None:
        while True:
            try:
                sock.recv(64)
                self.arrived[text] += 1
            except TimeoutError:
                if self._done.is_set():
                    return

    def __enter__(self) -> "Stream":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        for sock in (self._send, *self._sockets.values()):
            sock.close()


@pytest.mark.parametrize("single", [True, False], ids=["hash", "interval"])
def test_two_hundred_replacements_under_traffic_leak_and_lose_nothing(rig: Rig, kernel: Nftables, single: bool) -> None:
    kernel.replace(ruleset.build(spec(1, single=single, filler=500)))
    with Stream(rig) as stream:
        until(lambda: stream.arrived[ALLOWED] > 100, "traffic flows")
        for number in range(2, 202):
            kernel.replace(ruleset.build(spec(number, single=single, filler=500 + number)))
    assert stream.arrived[BLOCKED] == 0
    assert stream.arrived[ALLOWED] == stream.sent > 1000
    assert kernel.counters(TABLE)["alipay_payment"][0] > 1000, "the counter went on through all of them"


def test_a_refused_change_leaves_everything_as_it_was(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(ruleset.build(spec(1, single=False)))
    before = rig.run("gateway", "nft", "list", "table", "inet", TABLE).stdout
    overlapping = spec(2, single=False, ranges=((4, 100, 200, PAY), (4, 150, 250, PAY)))
    with pytest.raises(FirewallError, match="elements of network4_2"):
        kernel.replace(ruleset.build(overlapping))
    assert rig.run("gateway", "nft", "list", "table", "inet", TABLE).stdout == before
    kernel.replace(ruleset.build(spec(3, single=False)))


def test_a_dry_run_leaves_nothing(rig: Rig, kernel: Nftables) -> None:
    kernel.check(ruleset.build(spec(1, single=False, filler=100), "embargo_check"))
    assert rig.run("gateway", "nft", "list", "ruleset").stdout == ""
    with pytest.raises(FirewallError, match="network4_1"):
        kernel.check(ruleset.build(spec(1, single=False, ranges=((4, 1, 9, PAY), (4, 5, 20, PAY))), "embargo_check"))
    assert rig.run("gateway", "nft", "list", "ruleset").stdout == ""


def test_timed_elements_survive_a_replacement_and_are_renewed(rig: Rig, kernel: Nftables) -> None:
    kernel.replace(ruleset.build(spec(1, single=True)))
    key = socket.inet_aton(BLOCKED)
    kernel.transact(netlink.timed_elements(TABLE, "allow4", [(key, 60)]))
    assert rig.reach("client", BLOCKED) == "open"
    kernel.replace(ruleset.build(spec(2, single=True)))
    assert rig.reach("client", BLOCKED) == "open"
    kernel.transact(netlink.timed_elements(TABLE, "allow4", [(key, 60)]))
    assert kernel.keys(TABLE, "allow4") == [key]
    kernel.transact([netlink.flush_set(TABLE, "allow4")])
    assert rig.reach("client", BLOCKED) == "refused"


def test_a_hundred_thousand_elements_are_taken_in_chunks(kernel: Nftables) -> None:
    base = address("198.18.0.0")
    ranges = [(4, base + 2 * n, base + 2 * n, PAY) for n in range(60_000)]
    ranges += [(4, base + 200_000 + 16 * n, base + 200_000 + 16 * n + 7, PAY) for n in range(40_000)]
    made = ruleset.build(spec(1, single=True, ranges=tuple(ranges)))
    kernel.replace(made)
    assert made.elements == 100_000
    assert len(kernel.keys(TABLE, "address4_1")) == 60_000
    assert len(kernel.keys(TABLE, "network4_1")) == 40_000
    kernel.remove(TABLE)
    assert not kernel.has_table(TABLE)


def test_ranges_at_the_ends_of_the_address_space(rig: Rig, kernel: Nftables) -> None:
    top4, top6 = (1 << 32) - 1, (1 << 128) - 1
    ranges = ((4, 0, 3, PAY), (4, top4 - 3, top4, PAY), (6, 0, 3, PAY), (6, top6 - 3, top6, PAY))
    kernel.replace(ruleset.build(spec(1, single=False, ranges=ranges)))
    text = rig.run("gateway", "nft", "list", "map", "inet", TABLE, "network4_1").stdout
    assert "255.255.255.252" in text


def test_without_cap_net_admin_it_says_what_is_needed() -> None:
    code = "from embargo.daemon import netlink; netlink.Nftables().transact([netlink.new_table('x')])"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "FirewallError" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr


def test_the_agents_table_is_before_an_established_accept(rig: Rig, kernel: Nftables) -> None:
    """A rule set of somebody else that accepts open flows does not keep them open."""
    rules = "table inet other { chain f { type filter hook forward priority 0; ct state established accept; }; }"
    rig.run("gateway", "nft", rules)
    with rig.socket("client", socket.SOCK_STREAM, BLOCKED) as flow:
        flow.settimeout(3)
        flow.connect((BLOCKED, 443))
        flow.sendall(b"before")
        assert flow.recv(64) == b"before"
        kernel.replace(ruleset.build(spec(1, single=True)))
        flow.sendall(b"after")
        with pytest.raises(ConnectionResetError):
            flow.recv(64)
    assert f"{LAN4}.10" not in rig.run("gateway", "nft", "list", "table", "inet", TABLE).stdout
