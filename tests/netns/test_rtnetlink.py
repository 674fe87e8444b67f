"""Links, addresses, default routes and neighbours, whole however many there are and whatever changes meanwhile."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pyroute2
import pytest

from embargo.daemon.host import machine, rtnetlink
from embargo.daemon.host.rtnetlink import Way
from tools.rig import Rig, until

pytestmark = pytest.mark.root


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as built:
        yield built


def batch(rig: Rig, lines: list[str], *family: str) -> None:
    command = [*rig.prefix("gateway"), "ip", *family, "-batch", "-"]
    subprocess.run(command, input="\n".join(lines), text=True, check=True, timeout=60)


def shown(rig: Rig, *command: str) -> Any:
    return json.loads(rig.run("gateway", "ip", "-j", *command).stdout)


def test_links_and_addresses_are_those_that_ip_shows(rig: Rig) -> None:
    batch(rig, ["link add d0 type veth peer d1", "address add 10.9.0.1 peer 10.9.0.2/32 dev d0"])
    links = shown(rig, "link")
    assert rig.within("gateway", rtnetlink.links) == {link["ifindex"]: link["ifname"] for link in links}
    expected = {(row["ifindex"], a["local"], a["prefixlen"]) for row in shown(rig, "address") for a in row.get("addr_info", ())}
    found = rig.within("gateway", rtnetlink.addresses)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert "10.9.0.1" in {address for _, address, _ in found}, "of a point-to-point link our own end"


def test_default_routes_are_found_behind_ten_thousand_others(rig: Rig) -> None:
    before = rig.within("gateway", machine.gateways)
    batch(rig, [f"route add 10.{n >> 8}.{n & 255}.0/24 via 198.51.100.53" for n in range(10_000)])
    batch(rig, ["route add default via 198.51.100.7 metric 7000"])
    batch(rig, ["route add default via 2001:db8:2::7 metric 7000"], "-6")
    assert set(rig.within("gateway", machine.gateways)) == {*before, "198.51.100.7", "2001:db8:2::7"}
    assert rig.within("gateway", machine.ways_out) == {"wan0"}


def test_all_ways_of_a_default_route_count(rig: Rig) -> None:
    more = ["route add default via inet6 2001:db8:2::8 dev wan0 metric 2", "route add unreachable default metric 3"]
    batch(rig, ["route add default metric 1 nexthop via 198.51.100.7 dev wan0 nexthop via 192.0.2.7 dev lan0", *more], "-4")
    ways = "nexthop via 2001:db8:2::7 dev wan0 nexthop via 2001:db8:1::7 dev lan0"
    batch(rig, [f"route add default metric 1 {ways}"], "-6")
    wan, lan = (link["ifindex"] for name in ("wan0", "lan0") for link in shown(rig, "link", "show", name))
    assert set(rig.within("gateway", rtnetlink.default_ways)) >= {
        Way(wan, "198.51.100.7"), Way(lan, "192.0.2.7"), Way(wan, "2001:db8:2::7"), Way(lan, "2001:db8:1::7"),
        Way(wan, "2001:db8:2::8"), Way(0, ""),
    }  # fmt: skip
    assert rig.within("gateway", machine.ways_out) == {"wan0", "lan0"}
    assert "" not in rig.within("gateway", machine.gateways)


def test_all_of_some_thousand_neighbours_are_read(rig: Rig) -> None:
    macs = {f"192.0.2.{n}": f"02:00:00:00:00:{n:02x}" for n in range(20, 250)}
    macs |= {f"2001:db8:1::{n:x}": f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}" for n in range(0x1000, 0x1300)}
    batch(rig, [f"neighbour replace {address} lladdr {mac} dev lan0 nud permanent" for address, mac in macs.items()])
    assert rig.within("gateway", rtnetlink.neighbours).items() >= macs.items()


def test_a_list_that_changes_meanwhile_is_read_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links come and go between others that stay."""
    batch(rig, [f"link add stay{n} type veth peer stays{n}" for n in range(60)])
    rig.start("gateway", "sh", "-c", "while ip link add z1 type veth peer z2 && ip link delete z1; do sleep 0.01; done")
    stays = {f"stay{n}" for n in range(60)} | {f"stays{n}" for n in range(60)}
    torn = 0
    read = rtnetlink._read

    async def counted(*members: Any) -> tuple[list[Any], bool]:
        nonlocal torn
        rows, is_torn = await read(*members)
        torn += is_torn
        return rows, is_torn

    monkeypatch.setattr(rtnetlink, "_read", counted)

    def looked() -> bool:
        assert stays <= set(rig.within("gateway", rtnetlink.links).values())
        return torn > 0

    until(looked, "one was torn")


def test_a_list_that_never_comes_whole_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = 0

    async def torn(*members: Any) -> tuple[list[Any], bool]:
        nonlocal readings
        readings += 1
        return [], True

    monkeypatch.setattr(rtnetlink, "_read", torn)
    with pytest.raises(OSError, match="cannot list interfaces: they change all the time"):
        machine.interfaces()
    assert readings == rtnetlink.MAX_READINGS


LISTS = {
    "interfaces": rtnetlink.links, "addresses": rtnetlink.addresses, "routes": rtnetlink.default_ways,
    "neighbours": rtnetlink.neighbours,
}  # fmt: skip
ERRORS = [
    (pyroute2.NetlinkError(errno.EBUSY), "Device or resource busy"),
    (pyroute2.NetlinkDumpInterrupted(), "Unknown error -1"),
    (pyroute2.NetlinkDecodeError(ValueError("short")), "NetlinkDecodeError"),
    (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available"),
    (KeyError("no free address available"), "no free address available"),
    (RuntimeError("Max attempts sending message"), "Max attempts"),
]


@pytest.mark.parametrize("what", LISTS)
@pytest.mark.parametrize(("error", "text"), ERRORS, ids=lambda value: type(value).__name__)
def test_every_exception_of_the_library_is_an_oserror_here(
    monkeypatch: pytest.MonkeyPatch, what: str, error: Exception, text: str
) -> None:
    def fail(*members: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(pyroute2, "AsyncIPRoute", fail)
    with pytest.raises(OSError, match=rf"cannot list {what}: .*{re.escape(text)}"):
        LISTS[what]()


def test_what_the_kernel_broke_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a list with an error number in it."""
    marshal = pyroute2.iproute.linux.AsyncIPRoute().marshal.__class__
    parse = marshal.parse

    def broken(self: Any, data: bytes, *members: Any) -> Any:
        end = bytes.fromhex("14000000") + b"\3\0\2\0" + data[8:16] + (-errno.ENOMEM).to_bytes(4, "little", signed=True)
        return parse(self, end, *members)

    monkeypatch.setattr(marshal, "parse", broken)
    with pytest.raises(OSError, match="cannot list interfaces") as caught:
        rtnetlink.links()
    assert caught.value.errno == errno.ENOMEM
    assert os.strerror(errno.ENOMEM) in str(caught.value)


def test_it_loads_nothing_before_it_is_needed() -> None:
    code = "import sys, embargo.daemon.host.machine, embargo.daemon.guard.guardian; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
