"""The drop log from the kernel: who, what, which class; what could not be delivered is counted."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from embargo.daemon.guard.nflog import NfLog, Record
from embargo.daemon.host.nftables import Nftables
from embargo.errors import FirewallError
from embargo.firewall import ruleset, spans
from embargo.firewall.ruleset import LOG_RATE, Spec
from embargo.firewall.table import TABLE
from embargo.lists.policy import Action, Class
from support.stream import number
from tools.rig import LAN4, LAN6, WAN4, WAN6, Rig, until

pytestmark = pytest.mark.root

GROUP = 8300
PAY, LOGS = Class("alipay", "payment"), Class("qq", "telemetry")
PAY4, PAY6 = "203.0.113.5", "2001:db8:3::5"
LOGS4, LOGS6 = "203.0.113.16", "2001:db8:3::16"
EVERY_PACKET = """table inet every {{
    counter seen {{ }}
    chain forward {{
        type filter hook forward priority 0
        udp dport 9000 counter name "seen" log prefix "embargo alipay/payment" group {group} snaplen 64 queue-threshold 32 drop
    }}
}}"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as built:
        built.serve_web()
        yield built


@pytest.fixture(scope="module")
def kernel(rig: Rig) -> Iterator[Nftables]:
    made = rig.within("gateway", Nftables)
    ranges = [(4, PAY4, PAY4, PAY), (4, LOGS4, "203.0.113.31", LOGS), (6, PAY6, PAY6, PAY), (6, LOGS6, "2001:db8:3::1f", LOGS)]
    spec = Spec(
        1, ((PAY, Action.BLOCK), (LOGS, Action.AUDIT)),
        spans.gather((family, number(first), number(last), class_) for family, first, last, class_ in ranges), log_group=GROUP,
    )  # fmt: skip
    made.replace(ruleset.build(spec))
    yield made
    made.close()


@pytest.fixture
def log(rig: Rig, kernel: Nftables) -> Iterator[NfLog]:
    del kernel
    opened = rig.within("gateway", lambda: NfLog(GROUP))
    yield opened
    opened.close()


def records(log: NfLog, enough: Callable[[list[Record]], bool]) -> list[Record]:
    """Everything that comes until it is enough."""
    found: list[Record] = []

    def more() -> bool:
        found.extend(log.read())
        return enough(found)

    until(more, "the records come")
    return found


def index(rig: Rig, name: str) -> int:
    return int(rig.run("gateway", "cat", f"/sys/class/net/{name}/ifindex").stdout)


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.mark.parametrize(
    ("address", "client", "class_", "fate"),
    [
        (PAY4, f"{LAN4}.10", PAY, "refused"),
        (PAY6, f"{LAN6}:10", PAY, "refused"),
        ("203.0.113.25", f"{LAN4}.10", LOGS, "open"),  # audit: logged, and it passes
        ("2001:db8:3::1a", f"{LAN6}:10", LOGS, "open"),
    ],
)
def test_a_record_tells_class_flow_sender_and_interfaces(
    rig: Rig, log: NfLog, address: str, client: str, class_: Class, fate: str
) -> None:
    assert rig.reach("client", address, 8080) == fate
    record = records(log, lambda found: bool(found))[0]
    mac = rig.run("client", "cat", "/sys/class/net/eth0/address").stdout.strip()
    expected = (str(class_), 6 if ":" in address else 4, packed(client), packed(address), 6, record.sport, 8080, mac)
    assert record == (*expected, index(rig, "lan0"), index(rig, "wan0"))
    assert record.sport >= 1024


@pytest.mark.parametrize(("address", "own"), [(PAY4, f"{WAN4}.1"), (PAY6, f"{WAN6}:1")])
def test_a_packet_of_the_gateways_own_has_no_sender_on_the_link(rig: Rig, log: NfLog, address: str, own: str) -> None:
    rig.reach("gateway", address, 443, udp=True)
    record = records(log, lambda found: bool(found))[0]
    assert (record.app_class, record.src, record.proto, record.dport) == (str(PAY), packed(own), 17, 443)
    assert (record.mac, record.indev, record.outdev) == ("", 0, index(rig, "wan0"))


@pytest.mark.parametrize("address", [PAY4, PAY6])
def test_only_the_first_fragment_has_ports(rig: Rig, log: NfLog, address: str) -> None:
    with rig.socket("client", socket.SOCK_DGRAM, address) as sock:
        sock.bind(("", 40000))
        sock.sendto(bytes(3000), (address, 443))
    found = records(log, lambda found: len(found) >= 3)
    assert [(record.proto, record.sport, record.dport) for record in found] == [(17, 40000, 443), (17, 0, 0), (17, 0, 0)]


def test_a_flood_is_logged_at_a_bounded_rate_and_counted_in_full(rig: Rig, kernel: Nftables, log: NfLog) -> None:
    before = kernel.counters(TABLE)["alipay_payment"][0]
    with rig.socket("client", socket.SOCK_DGRAM, PAY4) as sock:
        for _ in range(5000):
            sock.sendto(b"x", (PAY4, 9))
    until(lambda: kernel.counters(TABLE)["alipay_payment"][0] == before + 5000, "every packet is counted")
    found = records(log, lambda found: len(found) >= LOG_RATE // 2)
    assert len(found) < 5000
    assert log.lost == 0


def test_what_the_reader_was_too_slow_for_is_counted_as_lost(rig: Rig, kernel: Nftables, log: NfLog) -> None:
    """Every packet logged, and nobody reads: records and lost together are what the kernel counted."""
    rig.run("gateway", "nft", EVERY_PACKET.format(group=GROUP))
    try:
        with rig.socket("client", socket.SOCK_DGRAM, "203.0.113.99") as sock:
            for _ in range(100_000):
                sock.sendto(b"x", ("203.0.113.99", 9000))
            counted = until(lambda: kernel.counters("every")["seen"][0] >= 100_000, "all came through")
            assert counted
            found = 0
            while batch := log.read():
                found += len(batch)
            assert 10_000 < found < 100_000
            sock.sendto(b"x", ("203.0.113.99", 9000))  # the gap shows when the next one comes
        found += len(records(log, lambda more: bool(more)))
        assert log.lost > 0
        assert found + log.lost == kernel.counters("every")["seen"][0] == 100_001
    finally:
        rig.run("gateway", "nft", "delete table inet every")


def test_a_group_that_somebody_reads_is_refused_until_he_ends(rig: Rig, log: NfLog) -> None:
    with pytest.raises(FirewallError, match=r"read log group 8300: another process reads it.*log_group"):
        rig.within("gateway", lambda: NfLog(GROUP))
    rig.within("gateway", lambda: NfLog(GROUP + 1)).close()
    log.close()
    rig.within("gateway", lambda: NfLog(GROUP)).close()


def test_without_cap_net_admin_it_says_so() -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c",
         "from embargo.daemon.guard import nflog; nflog.NfLog(8300)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "FirewallError: read log group 8300" in done.stderr
    assert "CAP_NET_ADMIN" in done.stderr


def test_packets_of_other_rules_in_the_same_group_are_passed_over(rig: Rig, log: NfLog) -> None:
    rig.run(
        "gateway", "nft", f"table inet other {{ chain f {{ type filter hook forward priority -10; log group {GROUP}; }}; }}"
    )
    try:
        assert rig.reach("client", PAY4) == "refused"
        found = records(log, lambda found: bool(found))
        assert {record.app_class for record in found} == {str(PAY)}
        assert log.lost == 0
    finally:
        rig.run("gateway", "nft", "delete table inet other")
