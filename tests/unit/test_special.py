"""Special-use names: which they are, and what each is answered with."""

import ipaddress

import pytest

from embargo import names
from embargo.dns import special
from embargo.dns.special import Special


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resolver.arpa", Special.NODATA), ("_dns.resolver.arpa", Special.NODATA),
        ("localhost", Special.LOOPBACK), ("a.b.localhost", Special.LOOPBACK),
        ("invalid", Special.NXDOMAIN), ("x.onion", Special.NXDOMAIN), ("printer.local", Special.NXDOMAIN),
        ("box.home.arpa", Special.NXDOMAIN), ("1.0.0.10.in-addr.arpa", Special.NXDOMAIN),
        ("1.1.16.172.in-addr.arpa", Special.NXDOMAIN), ("1.1.31.172.in-addr.arpa", Special.NXDOMAIN),
        ("1.0.0.127.in-addr.arpa", Special.LOCALHOST), ("2.0.0.127.in-addr.arpa", Special.NXDOMAIN),
        ("x.1.0.0.127.in-addr.arpa", Special.NXDOMAIN), ("1.d.f.ip6.arpa", Special.NXDOMAIN),
        ("a.e.f.ip6.arpa", Special.NXDOMAIN),
        (".", None), ("test", None), ("free.test", None), ("arpa", None), ("xlocalhost", None), ("xresolver.arpa", None),
        ("1.1.15.172.in-addr.arpa", None), ("1.1.32.172.in-addr.arpa", None), ("1.0.0.11.in-addr.arpa", None),
        ("c.e.f.ip6.arpa", None), ("local.example", None), (r"x\.local", None), (r"x\005local", None),
    ],
)  # fmt: skip
def test_a_name_is_special_by_its_suffix(name: str, kind: Special | None) -> None:
    assert special.kind(names.from_text(name), ()) is kind


@pytest.mark.parametrize(
    "network",
    [
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.2.0/24",
        "192.168.0.0/16", "198.51.100.0/24", "203.0.113.0/24", "255.255.255.255/32", "::/128", "::1/128", "fd00::/8",
        "fe80::/10", "2001:db8::/32",
    ],
)  # fmt: skip
def test_reverse_names_of_addresses_that_mean_nothing_outside_stay_here(network: str) -> None:
    """RFC 6303 section 4, RFC 7793 section 3: the first and the last address of each, and not those beside it."""
    net = ipaddress.ip_network(network)
    for inside in (net[0], net[-1]):
        assert special.kind(names.reverse(inside.packed), ()) in (Special.NXDOMAIN, Special.LOCALHOST), inside
    numbers = int(net[0]) - 1, int(net[-1]) + 1
    for number in numbers:
        if 0 <= number < 1 << net.max_prefixlen and number not in (0, 1):
            outside = type(net[0])(number)
            assert special.kind(names.reverse(outside.packed), ()) is None, outside


def test_a_zone_with_servers_of_its_own_is_asked_there() -> None:
    forward = {names.from_text(zone) for zone in ("corp.local", "10.in-addr.arpa", "arpa", "localhost")}
    for name, kind in (
        ("host.corp.local", None), ("host.local", Special.NXDOMAIN), ("1.0.0.10.in-addr.arpa", None),
        ("1.1.168.192.in-addr.arpa", Special.NXDOMAIN), ("x.localhost", None), ("_dns.resolver.arpa", Special.NODATA),
        ("free.test", None),
    ):  # fmt: skip
        assert special.kind(names.from_text(name), forward) is kind, name


def test_every_special_name_has_one_of_the_endings() -> None:
    zones = special._RESOLVER | special._LOCALHOST | special._NONEXISTENT | special._LOOPBACK_REVERSE
    assert all(zone.endswith(special.ENDINGS) for zone in zones)
