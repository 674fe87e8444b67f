"""The state of the machine: interfaces from the kernel, resolvers from files, the user of a port from /proc."""

import os
import socket
from pathlib import Path

import pytest

from embargo.daemon.host import machine
from embargo.daemon.host.machine import Interface
from embargo.dns.upstream import Server


def test_loopback_is_an_interface() -> None:
    assert Interface("lo", "127.0.0.1", 8) in machine.interfaces()


def test_a_network_is_canonical_and_link_local_addresses_carry_their_scope() -> None:
    assert Interface("lan0", "192.0.2.7", 24).network == "192.0.2.0/24"
    assert Interface("lan0", "fe80::1", 64).bindable == "fe80::1%lan0"
    assert Interface("lan0", "2001:db8::1", 64).bindable == "2001:db8::1"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "RESOLV_CONF", str(tmp_path / "resolv.conf"))
    monkeypatch.setattr(machine, "RESOLVED_CONF", str(tmp_path / "resolved.conf"))
    return tmp_path


def test_system_resolvers_are_those_of_resolv_conf(files: Path) -> None:
    text = "# made by hand\nsearch example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver nonsense\nnameserver\n"
    (files / "resolv.conf").write_text(text)
    assert machine.system_resolvers([]) == (Server("192.0.2.53", 53), Server("2001:db8::53", 53))


def test_the_stub_of_resolved_is_replaced_by_its_upstreams(files: Path) -> None:
    (files / "resolv.conf").write_text("nameserver 127.0.0.53\n")
    (files / "resolved.conf").write_text("nameserver 192.0.2.54\n")
    assert machine.system_resolvers([]) == (Server("192.0.2.54", 53),)


def test_the_stub_itself_is_never_asked(files: Path) -> None:
    (files / "resolv.conf").write_text("nameserver 192.0.2.53\nnameserver 127.0.0.54\n")
    (files / "resolved.conf").write_text("nameserver 127.0.0.1\nnameserver 192.0.2.53\nnameserver 192.0.2.54\n")
    assert machine.system_resolvers([("127.0.0.1", 53)]) == (Server("192.0.2.53", 53), Server("192.0.2.54", 53))


def test_if_the_machine_asks_this_agent_the_upstreams_of_resolved_are_used(files: Path) -> None:
    (files / "resolv.conf").write_text("nameserver 127.0.0.1\nnameserver ::1\n")
    assert machine.system_resolvers([("127.0.0.1", 53), ("::1", 53)]) == ()
    (files / "resolved.conf").write_text("nameserver 192.0.2.54\n")
    assert machine.system_resolvers([("127.0.0.1", 53), ("::1", 53)]) == (Server("192.0.2.54", 53),)


def test_the_agent_never_asks_itself(files: Path) -> None:
    (files / "resolv.conf").write_text("nameserver 127.0.0.1\nnameserver 192.0.2.53\n")
    assert machine.system_resolvers([("127.0.0.1", 53)]) == (Server("192.0.2.53", 53),)
    assert machine.system_resolvers([("127.0.0.1", 5353)])[0] == Server("127.0.0.1", 53)


def test_without_resolv_conf_there_are_none(files: Path) -> None:
    assert machine.system_resolvers([]) == ()
    assert not (files / "resolv.conf").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("udp", [True, False])
def test_the_holder_of_a_port_is_found(address: str, udp: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
        sock.bind((address, 0))
        if not udp:
            sock.listen(1)
        assert machine.holder(address, sock.getsockname()[1], udp=udp).endswith(f"(pid {os.getpid()})")


def test_a_wildcard_holds_every_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        assert str(os.getpid()) in machine.holder("127.0.0.1", sock.getsockname()[1], udp=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_wildcard_is_in_use_if_one_address_is(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        port = sock.getsockname()[1]
        assert str(os.getpid()) in machine.holder("::" if ":" in address else "0.0.0.0", port, udp=True)
        assert machine.holder("0.0.0.0" if ":" in address else "::", port, udp=True) == ""


def test_a_free_port_has_no_holder() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert machine.holder("127.0.0.1", port, udp=True) == ""
