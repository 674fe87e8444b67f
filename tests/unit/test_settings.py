"""The settings of an order as the engine's values."""

from dataclasses import replace

import pytest

from embargo import names
from embargo.daemon.resolve import settings
from embargo.daemon.resolve.orders import Settings
from embargo.dns.judgement import BlockMode
from embargo.dns.upstream import KEEP_ALL, Server, Strip

SETTINGS = Settings(
    allow_from=("192.0.2.0/24",), block_mode="nxdomain", block_ttl=10, upstream=("udp://192.0.2.53:53",),
    forward={"corp.test": ("tls://[2001:db8::53]:853#dns.corp.test",)},
    hosts={"NAS.lan": ("192.0.2.7", "2001:db8::7"), "nas2.lan": ("192.0.2.7",)},
    local=(), tls_ca="", strip_ech=False, rebind=False, rebind_except=(), log_names="blocked", learn=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("nxdomain", BlockMode("nxdomain", 10)),
        ("refused", BlockMode("refused", 10)),
        ("null", BlockMode("null", 10, (bytes(4),), (bytes(16),))),
        (("192.0.2.1", "2001:db8::1", "192.0.2.2"), BlockMode(
            "address", 10, (b"\xc0\0\2\1", b"\xc0\0\2\2"), (b"\x20\1\x0d\xb8" + bytes(11) + b"\1",)
        )),
    ],
)  # fmt: skip
def test_a_block_mode_has_its_addresses_packed(mode: str | tuple[str, ...], expected: BlockMode) -> None:
    assert settings.block_mode(replace(SETTINGS, block_mode=mode)) == expected


def test_upstreams_are_those_of_the_longest_zone() -> None:
    zones = settings.zones(SETTINGS)
    assert zones.default.servers == (Server("192.0.2.53", 53),)
    assert zones.upstreams(names.from_text("a.corp.test")).servers == (Server("2001:db8::53", 853, "tls", "dns.corp.test"),)


def test_a_host_has_its_addresses_and_an_address_the_first_host() -> None:
    zones = settings.zones(SETTINGS)
    nas = names.from_text("nas.lan")
    assert zones.hosts[nas] == (b"\xc0\0\2\7", b"\x20\1\x0d\xb8" + bytes(11) + b"\7")
    assert zones.reverse == {names.reverse(packed): nas for packed in zones.hosts[nas]}


@pytest.mark.parametrize(
    ("strip_ech", "rebind", "default", "forward"),
    [
        (False, False, KEEP_ALL, KEEP_ALL),
        (True, False, Strip(ech=True), Strip(ech=True)),
        (False, True, Strip(private=True), KEEP_ALL),
        (True, True, Strip(ech=True, private=True), Strip(ech=True)),
    ],
)
def test_private_addresses_are_kept_in_answers_of_a_zones_own_servers(
    strip_ech: bool, rebind: bool, default: Strip, forward: Strip
) -> None:
    zones = settings.zones(replace(SETTINGS, strip_ech=strip_ech, rebind=rebind))
    assert zones.default.strip == default
    assert zones.forward[names.from_text("corp.test")].strip == forward


def test_zones_that_are_kept_here_and_names_with_private_addresses() -> None:
    zones = settings.zones(replace(SETTINGS, local=("lan", "."), rebind_except=("plex.test",)))
    assert zones.kept == {names.from_text("lan"), names.ROOT}
    assert zones.private == {names.from_text("plex.test")}
