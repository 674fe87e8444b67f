"""`embargo export nft` on another gateway: the kernel lets through what the engine lets through, packet by packet."""

import ipaddress
import json
from collections.abc import Iterator

import pytest

from embargo.export import render
from embargo.lists.policy import Action, Level
from golden import exports as golden
from support import catalogue
from tools.rig import Rig

pytestmark = pytest.mark.root

LAN = '[firewall]\nlan = ["lan0"]\nexcept = ["192.0.2.11"]\n'
LOCAL = (
    catalogue.local(Level.ALLOW, "203.0.113.7", "2001:db8:a::7", "64:ff9b::203.0.113.9"),
    catalogue.local(Level.BLOCK, "203.0.113.240/28"),
)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.own("2001:db8:a::/48", "2001:db8:d::/48", "64:ff9b::/96", "64:ff9b:1::/48", "2002:cb00:7100::/40")
        made.serve_web()
        yield made


def load(rig: Rig, text: str, *, check: bool = True) -> str:
    path = rig.directory / "export.nft"
    path.write_text(text)
    return rig.run("gateway", "nft", "-f", str(path), check=check).stderr


def reached(rig: Rig, address: str, port: int = 443, *, udp: bool = False) -> bool:
    return rig.reach("client", address, port, udp=udp, seconds=5) == "open"


def test_every_address_of_a_network_is_judged_as_by_the_engine(rig: Rig) -> None:
    what, built, board = golden.of(golden.ALL, golden.FILES, LOCAL)
    load(rig, render.render(what, "nft", "1").text)
    asked = [str(ipaddress.IPv4Address("203.0.113.1") + n) for n in range(254)]
    asked += [f"2001:db8:a::{n:x}" for n in (1, 7, 8)] + ["2001:db8:a:1::1", "2001:db8:d::1", "2001:db8:d::2"]
    judged = {a: board.choose(built.lookup_address(ipaddress.ip_address(a).packed))[0] is Action.BLOCK for a in asked}
    assert 40 < sum(judged.values()) < 120
    assert {a: not reached(rig, a) for a in asked} == judged


def test_ipv6_forms_of_ipv4_addresses_are_judged_as_by_the_engine(rig: Rig) -> None:
    what, built, board = golden.of(golden.ALL, golden.FILES, LOCAL)
    load(rig, render.render(what, "nft", "1").text)
    inner = [ipaddress.IPv4Address(f"203.0.113.{n}") for n in (6, 7, 8, 9, 16, 79, 80, 96, 129, 130, 245)]
    asked = [f"{prefix}{address}" for address in inner for prefix in ("64:ff9b::", "64:ff9b:1:2:3:4:")]
    asked += [f"2002:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}::1" for address in inner]
    judged = {a: board.choose(built.lookup_address(ipaddress.ip_address(a).packed))[0] is Action.BLOCK for a in asked}
    assert len(set(judged.values())) == 2
    assert {a: not reached(rig, a) for a in asked} == judged


def test_ports_are_closed_for_clients_of_the_lan_and_open_for_those_excepted(rig: Rig) -> None:
    load(rig, render.render(golden.of(LAN, golden.FILES, LOCAL)[0], "nft", "1").text)
    assert not reached(rig, "203.0.113.200", 853)
    assert not reached(rig, "203.0.113.200", 853, udp=True)
    assert reached(rig, "203.0.113.200", 443, udp=True)
    assert not reached(rig, "203.0.113.1")
    load(rig, render.render(golden.of(LAN.replace(".11", ".10"), golden.FILES, LOCAL)[0], "nft", "1").text)
    assert reached(rig, "203.0.113.200", 853)
    assert reached(rig, "203.0.113.1")


def test_loading_a_table_replaces_the_previous_export_only(rig: Rig) -> None:
    load(rig, "table inet other {\n\tchain kept {\n\t}\n}\n")
    text = render.render(golden.of(golden.ALL, golden.FILES, LOCAL)[0], "nft", "1").text
    load(rig, text)
    once = rig.run("gateway", "nft", "-j", "list", "ruleset").stdout
    load(rig, text)
    twice = rig.run("gateway", "nft", "-j", "list", "ruleset").stdout
    assert kinds(once) == kinds(twice)
    assert ("table", "inet", "other") in kinds(once)


def kinds(listing: str) -> list[tuple[str, str, str]]:
    """What there is, without counts and handles."""
    found = [next(iter(each.items())) for each in json.loads(listing)["nftables"]]
    return sorted(
        (kind, each.get("family", ""), each.get("name", each.get("chain", ""))) for kind, each in found if kind != "metainfo"
    )


def test_the_gateway_itself_may_query_a_listed_resolver(rig: Rig) -> None:
    """It may be the one it is told to ask; over HTTPS it is blocked."""
    load(rig, render.render(golden.of(golden.ALL, golden.FILES, LOCAL)[0], "nft", "1").text)
    rig.serve_dns()
    assert rig.dig("gateway", "@203.0.113.129", "name.example").rcode == "NOERROR"
    assert rig.reach("gateway", "203.0.113.129", 443) != "open"
    assert rig.reach("gateway", "203.0.113.130", 443) == "open"


@pytest.mark.parametrize("case", [case for case in golden.CASES if case.endswith(".nft")])
def test_nft_accepts_every_golden_file(rig: Rig, case: str) -> None:
    assert load(rig, golden.rendered(case)) == ""
