"""The addresses to listen on, and the real sockets."""

import json
import socket

import pytest

from embargo import config
from embargo.config import Config
from embargo.daemon.host import endpoints
from embargo.daemon.host.endpoints import Endpoint, ListenError, Sockets
from embargo.daemon.host.machine import Interface
from support.agent import free_port

LO = (Interface("lo", "127.0.0.1", 8), Interface("lo", "::1", 128))
LAN = (*LO, Interface("lan0", "192.0.2.1", 24), Interface("lan0", "2001:db8:1::1", 64), Interface("lan0", "fe80::1", 64))


def settings(listen: list[str], firewall: str = "") -> Config:
    return config.parse(f"[dns]\nlisten = {json.dumps(listen)}\n[firewall]\n{firewall}\n".encode(), "test")


def test_the_configured_addresses_are_wanted() -> None:
    assert endpoints.wanted(settings(["127.0.0.1:53", "[::1]:53"]), LO) == (Endpoint("127.0.0.1", 53), Endpoint("::1", 53))


def test_an_interface_means_its_addresses() -> None:
    found = endpoints.wanted(settings(["lan0"]), LAN)
    assert found == (Endpoint("192.0.2.1", 53), Endpoint("2001:db8:1::1", 53), Endpoint("fe80::1%lan0", 53))


def test_intercepted_interfaces_are_always_listened_on() -> None:
    found = endpoints.wanted(settings(["127.0.0.1:5353"], 'lan = ["lan0"]'), LAN)
    assert [each.address for each in found] == ["127.0.0.1", "192.0.2.1", "2001:db8:1::1", "fe80::1%lan0"]
    assert {each.port for each in found} == {5353}
    assert len(endpoints.wanted(settings(["127.0.0.1:5353"], 'lan = ["lan0"]\nintercept_dns = false'), LAN)) == 1
    assert len(endpoints.wanted(settings(["127.0.0.1:5353"], 'lan = ["lan0"]\nenabled = false'), LAN)) == 1


def test_a_wildcard_covers_the_addresses_of_its_family() -> None:
    found = endpoints.wanted(settings(["0.0.0.0:53", "127.0.0.1:53", "127.0.0.1:54"], 'lan = ["lan0"]'), LAN)
    assert Endpoint("192.0.2.1", 53) not in found
    assert {Endpoint("0.0.0.0", 53), Endpoint("127.0.0.1", 54), Endpoint("2001:db8:1::1", 53)} <= set(found)


def test_a_machine_without_ipv6_listens_on_ipv4_only() -> None:
    assert endpoints.wanted(settings(["127.0.0.1:53", "[::1]:53"]), LO[:1]) == (Endpoint("127.0.0.1", 53),)


def test_local_includes_the_networks_of_the_lan_interfaces() -> None:
    found = endpoints.local_networks(settings(["127.0.0.1:53"], 'lan = ["lan0"]'), LAN)
    assert {"127.0.0.0/8", "::1/128", "fe80::/10", "192.0.2.0/24", "2001:db8:1::/64"} <= set(found)
    assert "192.0.2.0/24" not in endpoints.local_networks(settings(["127.0.0.1:53"]), LAN)


def test_an_endpoint_that_stays_keeps_its_sockets() -> None:
    first, second = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sockets = Sockets()
    try:
        assert sockets.follow([first], 2, LO)
        kept = [sock.fileno() for _, sock in sockets.of(0)]
        assert sockets.follow([first, second], 2, LO)
        assert [sock.fileno() for _, sock in sockets.of(0)][:2] == kept
        assert [kind for kind, _ in sockets.of(1)] == ["udp", "tcp"] * 2
        assert not sockets.follow([first, second], 2, LO)
        assert sockets.follow([second], 2, LO)
        assert sockets.endpoints == (second,)
    finally:
        sockets.close()


def test_what_is_no_longer_listened_on_is_closed_at_once() -> None:
    """Kept open without a reader it would take queries from a wildcard socket on the same port."""
    first, second = Endpoint("127.0.0.1", free_port()), Endpoint("127.0.0.1", free_port())
    sockets = Sockets()
    try:
        sockets.follow([first], 2, LO)
        before = [sock for number in (0, 1) for _, sock in sockets.of(number)]
        assert sockets.follow([second], 2, LO)
        assert {sock.fileno() for sock in before} == {-1}
        assert -1 not in {sock.fileno() for number in (0, 1) for _, sock in sockets.of(number)}
    finally:
        sockets.close()


def test_one_address_that_cannot_be_bound_changes_nothing() -> None:
    first = Endpoint("127.0.0.1", free_port())
    sockets = Sockets()
    try:
        sockets.follow([first], 1, LO)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.2", first.port))
            with pytest.raises(ListenError, match=r"127\.0\.0\.2:\d+ \(UDP\) is in use"):
                sockets.follow([first, Endpoint("127.0.0.2", first.port)], 1, LO)
        assert sockets.endpoints == (first,)
    finally:
        sockets.close()


@pytest.mark.parametrize("there", [True, False])
def test_an_address_that_is_not_usable_yet_is_listened_on(there: bool, caplog: pytest.LogCaptureFixture) -> None:
    """During duplicate address detection, or while the interface is down at boot."""
    sockets = Sockets()
    lan = [Interface("lan0", "198.51.100.9", 24)] if there else []
    try:
        assert sockets.follow([Endpoint("198.51.100.9", free_port())], 1, [*LO, *lan])
        assert ("no interface has the address 198.51.100.9 yet" in caplog.text) is not there
    finally:
        sockets.close()


def test_another_program_with_so_reuseport_does_not_share_the_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        with pytest.raises(ListenError, match="is in use by"):
            Sockets().follow([Endpoint("127.0.0.1", stranger.getsockname()[1])], 1, LO)
