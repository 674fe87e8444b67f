"""Special-use names: which they are, and what each is answered with."""

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
        ("1.0.0.127.in-addr.arpa", Special.NXDOMAIN), ("1.d.f.ip6.arpa", Special.NXDOMAIN),
        ("a.e.f.ip6.arpa", Special.NXDOMAIN),
        (".", None), ("test", None), ("free.test", None), ("arpa", None), ("xlocalhost", None), ("xresolver.arpa", None),
        ("1.1.15.172.in-addr.arpa", None), ("1.1.32.172.in-addr.arpa", None), ("1.0.0.11.in-addr.arpa", None),
        ("c.e.f.ip6.arpa", None), ("local.example", None), (r"x\.local", None), (r"x\005local", None),
    ],
)  # fmt: skip
def test_a_name_is_special_by_its_suffix(name: str, kind: Special | None) -> None:
    assert special.kind(names.from_text(name), ()) is kind


def test_a_zone_with_servers_of_its_own_is_asked_there() -> None:
    forward = {names.from_text(zone) for zone in ("corp.local", "10.in-addr.arpa", "arpa", "localhost")}
    for name, kind in (
        ("host.corp.local", None), ("host.local", Special.NXDOMAIN), ("1.0.0.10.in-addr.arpa", None),
        ("1.1.168.192.in-addr.arpa", Special.NXDOMAIN), ("x.localhost", None), ("_dns.resolver.arpa", Special.NODATA),
        ("free.test", None),
    ):  # fmt: skip
        assert special.kind(names.from_text(name), forward) is kind, name


def test_every_special_name_has_one_of_the_endings() -> None:
    zones = special._RESOLVER | special._LOCALHOST | special._NONEXISTENT
    assert all(zone.endswith(special.ENDINGS) for zone in zones)
