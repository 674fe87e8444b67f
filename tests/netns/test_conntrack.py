"""Connections in the kernel: listed, deleted, unmarked; and the mark that says by which judgement a flow was let through."""

import contextlib
import dataclasses
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from embargo.config import CT_MARK
from embargo.daemon.guard import conntrack
from embargo.daemon.guard.conntrack import Conntrack
from embargo.daemon.guard.neighbours import FRESH_SECONDS, WAIT_SECONDS, Neighbours
from embargo.daemon.host import rtnetlink
from embargo.daemon.host.nftables import Nftables
from embargo.firewall import ruleset, spans
from embargo.firewall.ruleset import Spec, value_of
from embargo.lists.policy import Action, Class
from tools.rig import LAN4, LAN6, Rig, until

pytestmark = pytest.mark.root

PAY = Class("alipay", "payment")
BLOCKED, FREE4, FREE6 = "203.0.113.9", "203.0.113.20", "2001:db8:3::20"


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as built:
        built.serve_web()
        yield built


@pytest.fixture
def kernel(rig: Rig) -> Iterator[Nftables]:
    socket_ = rig.within("gateway", Nftables)
    yield socket_
    socket_.close()


@pytest.fixture
def table(rig: Rig) -> Iterator[Conntrack]:
    socket_ = rig.within("gateway", Conntrack)
    yield socket_
    socket_.close()


def spec(judgement: int, generation: int = 1, last: int = 9, **members: Any) -> Spec:
    address = int.from_bytes(socket.inet_aton("203.0.113.0"))
    listed = spans.gather([(4, address + 8, address + last, PAY)])
    made = Spec(generation, ((PAY, Action.BLOCK),), listed, log_group=8310, ct_mark=CT_MARK)
    return dataclasses.replace(made, judgement=judgement, **members)


@contextlib.contextmanager
def flow(rig: Rig, address: str, port: int = 443) -> Iterator[socket.socket]:
    with rig.socket("client", socket.SOCK_STREAM, address) as sock:
        sock.settimeout(5)
        sock.connect((address, port))
        sock.sendall(b"hello")
        assert sock.recv(64) == b"hello"
        yield sock


def mark(rig: Rig, address: str) -> int:
    """The mark of the flow to an address, as the kernel shows it."""
    packed = {4: address, 6: ":".join(f"{int(part or '0', 16):04x}" for part in ["2001", "db8", "3", "0", "0", "0", "0", "20"])}
    shown = packed[6 if ":" in address else 4]
    rows = rig.run("gateway", "cat", "/proc/net/nf_conntrack").stdout.splitlines()
    (row,) = [row for row in rows if f"dst={shown} " in row and "ESTABLISHED" in row]
    return int(re.findall(r"mark=(\d+)", row)[0])


def test_connections_of_a_zone_are_deleted_too(rig: Rig, kernel: Nftables, table: Conntrack) -> None:
    """A gateway with several tables of routes keeps connections apart by zones."""
    kernel.replace(ruleset.build(spec(7)))  # connections are tracked
    zone = "table inet zones { chain pre { type filter hook prerouting priority raw; ct zone set 7; }; }"
    rig.run("gateway", "nft", zone)
    with flow(rig, FREE4):
        found = [each for each in table.flows() if each.destination == socket.inet_aton(FREE4)]
        assert found
        assert table.delete(found) == len(found)
        assert table.delete(found) == 0, "ended already"
        assert not [each for each in table.flows() if each.destination == socket.inet_aton(FREE4)]


@pytest.mark.parametrize("address", [FREE4, FREE6])
def test_a_flow_that_is_let_through_carries_the_number_of_the_judgement(rig: Rig, kernel: Nftables, address: str) -> None:
    kernel.replace(ruleset.build(spec(7)))
    with flow(rig, address) as sock:
        assert mark(rig, address) == value_of(7, CT_MARK)
        kernel.replace(ruleset.build(spec(8, generation=2)))
        assert mark(rig, address) == value_of(7, CT_MARK), "until its next packet"
        sock.sendall(b"more")
        assert sock.recv(64) == b"more"
        assert mark(rig, address) == value_of(8, CT_MARK)


def test_other_bits_of_the_mark_are_left_alone(rig: Rig, kernel: Nftables) -> None:
    other = "table ip other { chain f { type filter hook forward priority -200; ct mark 0 ct mark set 0x1234; }; }"
    rig.run("gateway", "nft", other)
    kernel.replace(ruleset.build(spec(3)))
    with flow(rig, FREE4):
        assert mark(rig, FREE4) == value_of(3, CT_MARK) | 0x1234


@pytest.mark.parametrize("lan", [(), ("lan0",)])
def test_an_open_flow_is_judged_again_by_the_next_judgement(rig: Rig, kernel: Nftables, lan: tuple[str, ...]) -> None:
    kernel.replace(ruleset.build(spec(1, lan=lan, last=8)))
    with flow(rig, BLOCKED) as sock:
        kernel.replace(ruleset.build(spec(2, generation=2, lan=lan)))
        with pytest.raises(ConnectionResetError):  # noqa: PT012  # some packet of them
            for _ in range(20):
                sock.sendall(b"more")
                assert sock.recv(64)


def test_judgements_go_round_and_none_is_the_one_of_a_new_flow() -> None:
    for mask in (CT_MARK, 0xF000, 0xFF, 0xFFFF_0000):
        values = [value_of(number, mask) for number in range(600)]
        assert all(value and value & ~mask == 0 for value in values)
        assert all(one != two for one, two in itertools.pairwise(values))
        assert len(set(values)) == min(600, mask >> (mask & -mask).bit_length() - 1)


def test_the_entries_are_listed_with_both_families(rig: Rig, table: Conntrack, kernel: Nftables) -> None:
    kernel.replace(ruleset.build(spec(5)))
    with flow(rig, FREE4), flow(rig, FREE6):
        found = {(each.source, each.destination, each.answers) for each in table.flows()}
        packed4, packed6 = socket.inet_aton(FREE4), socket.inet_pton(socket.AF_INET6, FREE6)
        assert (socket.inet_aton(f"{LAN4}.10"), packed4, packed4) in found
        assert (socket.inet_pton(socket.AF_INET6, f"{LAN6}:10"), packed6, packed6) in found
        marked = {each.destination for each in table.flows(value_of(5, CT_MARK), CT_MARK)}
        assert marked == {packed4, packed6}
        assert list(table.flows(value_of(6, CT_MARK), CT_MARK)) == []


def test_marks_are_taken_off_and_other_bits_stay(rig: Rig, table: Conntrack, kernel: Nftables) -> None:
    kernel.replace(ruleset.build(spec(5)))
    rig.run(
        "gateway", "nft", "table ip other { chain f { type filter hook forward priority -200; ct mark 0 ct mark set 0x12; }; }"
    )
    with flow(rig, FREE4):
        assert mark(rig, FREE4) == value_of(5, CT_MARK) | 0x12
        flows = list(table.flows(value_of(5, CT_MARK), CT_MARK))
        assert table.unmark(flows, CT_MARK) == len(flows) > 0
        assert mark(rig, FREE4) == 0x12


def test_entries_are_deleted_and_those_that_have_ended_are_no_error(rig: Rig, table: Conntrack, kernel: Nftables) -> None:
    kernel.replace(ruleset.build(spec(5)))
    with flow(rig, FREE4):
        flows = [each for each in table.flows() if each.destination == socket.inet_aton(FREE4)]
        assert table.delete(flows) == 1
        assert table.delete(flows) == 0
        assert socket.inet_aton(FREE4) not in {each.destination for each in table.flows()}


def test_a_hundred_thousand_entries_are_deleted(rig: Rig, table: Conntrack, kernel: Nftables) -> None:
    """How fast, tools/bench/firewall.py tells."""
    kernel.replace(ruleset.build(spec(5)))
    rig.run("gateway", "sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=600")
    flood = """
import socket
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(400)]
for sock in socks:
    for n in range(20, 250):
        try:
            sock.sendto(b"x", (f"203.0.113.{n}", 4000))
        except OSError:
            pass
"""
    rig.run("client", "python3", "-c", flood)
    flows = [each for each in table.flows() if each.destination[:3] == socket.inet_aton("203.0.113.0")[:3]]
    assert len(flows) > 80_000
    assert table.delete(flows) == len(flows)
    assert len(list(table.flows())) < 1000


def test_the_neighbours_are_those_of_the_kernel(rig: Rig) -> None:
    rig.reach("client", FREE4)
    rig.reach("client", FREE6)
    shown = json.loads(rig.run("gateway", "ip", "-j", "neighbour").stdout)
    expected = {row["dst"]: row["lladdr"] for row in shown if "lladdr" in row}
    assert rig.within("gateway", rtnetlink.neighbours) == expected
    assert expected
    table = Neighbours()
    mac = rig.within("gateway", lambda: table.mac(f"{LAN4}.10", 0.0))
    assert mac in expected.values()
    assert f"{LAN4}.10" in table.addresses(mac, 1.0)
    assert table.addresses("", 1.0) == []


def test_a_look_at_the_neighbours_waits_for_what_the_last_table_lacks_and_for_that_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, first, second = Neighbours(), "02:00:00:00:00:01", "02:00:00:00:00:02"
    monkeypatch.setattr(rtnetlink, "neighbours", lambda: {"192.0.2.10": first})
    assert table.mac("192.0.2.10", 0.0) == first
    go_on = threading.Event()

    def slow() -> dict[str, str]:
        go_on.wait(10)
        return {"192.0.2.10": second, "192.0.2.11": first}

    monkeypatch.setattr(rtnetlink, "neighbours", slow)
    assert table.mac("192.0.2.11", FRESH_SECONDS - 0.1) == "", "it is fresh"
    started = time.monotonic()
    assert table.mac("192.0.2.10", FRESH_SECONDS) == first
    assert table.addresses(first, FRESH_SECONDS) == ["192.0.2.10"]
    assert time.monotonic() - started < WAIT_SECONDS, "it does not wait for what it has"
    assert table.mac("192.0.2.11", FRESH_SECONDS) == ""
    assert time.monotonic() - started >= WAIT_SECONDS
    for _ in range(100):
        table.mac("192.0.2.11", FRESH_SECONDS + 1)
        table.addresses(second, FRESH_SECONDS + 1)
    assert time.monotonic() - started < 3 * WAIT_SECONDS, "it waits once"
    go_on.set()
    until(lambda: table.mac("192.0.2.10", FRESH_SECONDS + 1) == second, "it is read")
    assert table.addresses(first, FRESH_SECONDS + 1) == ["192.0.2.11"]
    monkeypatch.setattr(rtnetlink, "neighbours", refused)
    assert table.mac("192.0.2.12", 3 * FRESH_SECONDS) == ""
    assert table.mac("192.0.2.10", 3 * FRESH_SECONDS) == second


def refused() -> dict[str, str]:
    raise OSError("cannot list neighbours")


def test_whether_connections_are_tracked_is_read_from_the_kernel(rig: Rig, kernel: Nftables) -> None:
    assert not rig.within("gateway", conntrack.in_use)
    kernel.replace(ruleset.build(spec(5)))
    with flow(rig, FREE4):
        assert rig.within("gateway", conntrack.in_use)
