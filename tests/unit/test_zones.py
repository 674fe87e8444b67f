"""Which servers a name is asked at, and what is answered without asking."""

import dns.message
import pytest

from embargo import names
from embargo.dns import compose, message, zones
from embargo.dns.message import Answer
from embargo.dns.upstream import Server, Upstreams
from embargo.dns.zones import TTL, Zones
from embargo.names import Name

OUTSIDE, INSIDE, LAB = (Upstreams((Server(f"192.0.2.{number}", 53),)) for number in (1, 2, 3))
NAS = names.from_text("nas.lan")
ZONES = Zones(
    OUTSIDE,
    {names.from_text("corp.test"): INSIDE, names.from_text("lab.corp.test"): LAB},
    {NAS: (b"\xc0\0\2\7", b"\xc0\0\2\x08", bytes(15) + b"\7"), names.from_text("box.local"): (b"\xc0\0\2\x09",)},
    {names.reverse(b"\xc0\0\2\7"): NAS},
)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("free.test", OUTSIDE), ("corp.test", INSIDE), ("a.corp.test", INSIDE), ("a.lab.corp.test", LAB), ("xcorp.test", OUTSIDE),
     (".", OUTSIDE)],
)  # fmt: skip
def test_the_closest_zone_decides_who_is_asked(name: str, asked: Upstreams) -> None:
    assert ZONES.upstreams(names.from_text(name)) is asked


def texts(qname: Name, qtype: int, answer: Answer | None) -> list[str]:
    """The records of an answer, as dnspython reads them."""
    assert answer is not None
    found = dns.message.from_wire(message.reply(message.own_query(qname, qtype), answer))
    assert all(rrset.ttl == TTL for rrset in found.answer + found.authority)
    assert bool(found.answer) != bool(found.authority), "an answer, or the SOA that says how long there is none"
    return [str(rdata) for rrset in found.answer for rdata in rrset]


@pytest.mark.parametrize(
    ("name", "qtype", "records"),
    [
        ("nas.lan", message.A, ["192.0.2.7", "192.0.2.8"]), ("nas.lan", message.AAAA, ["::7"]), ("nas.lan", message.MX, []),
        ("nas.lan", message.PTR, []), ("nas.lan", message.ANY, []), ("box.local", message.AAAA, []),
        ("7.2.0.192.in-addr.arpa", message.PTR, ["nas.lan."]), ("7.2.0.192.in-addr.arpa", message.A, []),
    ],
)  # fmt: skip
def test_a_local_record_is_answered_or_is_no_data(name: str, qtype: int, records: list[str]) -> None:
    qname = names.from_text(name)
    for _ in range(2):
        answer = ZONES.local(qname, qtype)
        assert texts(qname, qtype, answer) == records
        assert answer is not None
        assert answer.rcode == message.NOERROR


def test_other_names_are_no_local_records() -> None:
    for name in ("lan", "x.nas.lan", "8.2.0.192.in-addr.arpa", "."):
        assert ZONES.local(names.from_text(name), message.A) is None


def test_a_local_record_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Zones(OUTSIDE, {}, dict(ZONES.hosts), dict(ZONES.reverse))
    first = [fresh.local(NAS, qtype) for qtype in range(1, 300)]
    monkeypatch.setattr(zones, "compose", None)
    assert [fresh.local(NAS, qtype) for qtype in range(1, 300)] == first
    assert len(fresh._composed) <= 3 * len(fresh.hosts)
    assert fresh == Zones(OUTSIDE, {}, dict(ZONES.hosts), dict(ZONES.reverse)), "what was composed makes no other settings"


def test_special_names_are_answered_and_a_local_record_knows_better_than_nxdomain() -> None:
    def special(name: str, qtype: int) -> Answer | None:
        return ZONES.special(names.from_text(name), qtype)

    assert special("free.test", message.A) is None
    assert special("localhost", message.A) == compose.addresses((b"\x7f\0\0\1",), TTL)
    assert special("localhost", message.AAAA) == compose.addresses((bytes(15) + b"\1",), TTL)
    assert special("localhost", message.MX) == compose.negative(message.NOERROR, TTL)
    assert special("_dns.resolver.arpa", message.SVCB) == compose.negative(message.NOERROR, TTL)
    assert special("other.local", message.A) == compose.negative(message.NXDOMAIN, TTL)
    assert special("box.local", message.A) == ZONES.local(names.from_text("box.local"), message.A)


@pytest.mark.parametrize("address", [b"\x7f\0\0\1", bytes(15) + b"\1"])
def test_the_reverse_names_of_loopback_addresses_lead_to_localhost(address: bytes) -> None:
    qname = names.reverse(address)
    assert texts(qname, message.PTR, ZONES.special(qname, message.PTR)) == ["localhost."]
    assert texts(qname, message.A, ZONES.special(qname, message.A)) == []
    named = Zones(OUTSIDE, hosts={NAS: (address,)}, reverse={qname: NAS})
    assert texts(qname, message.PTR, named.special(qname, message.PTR)) == ["nas.lan."], "a hosts file knows better"


KEPT = Zones(
    OUTSIDE,
    {names.from_text("corp.lan"): INSIDE},
    {NAS: (b"\xc0\0\2\7",), names.from_text("printer"): (b"\xc0\0\2\x08",)},
    kept=frozenset({names.from_text("lan"), names.from_text("sub.corp.lan"), names.ROOT}),
)


@pytest.mark.parametrize(
    ("name", "qtype", "rcode"),
    [
        ("nas.lan", message.A, 0), ("other.lan", message.A, 3), ("a.b.LAN", message.HTTPS, 3), ("lan", message.A, 0),
        ("lan", message.DS, 0), ("corp.lan", message.A, None), ("a.corp.lan", message.A, None),
        ("x.sub.corp.lan", message.A, 3), ("xlan.test", message.A, None), ("printer", message.A, 0), ("wpad", message.AAAA, 0),
        ("com", message.HTTPS, 0),
        ("com", message.NS, None), ("com", message.DS, None), ("com", message.DNSKEY, None), ("com", message.SOA, None),
        (".", message.A, None), (".", message.NS, None),
    ],
)  # fmt: skip
def test_names_that_mean_something_only_inside_are_kept_here(name: str, qtype: int, rcode: int | None) -> None:
    answer = KEPT.local(names.from_text(name), qtype)
    assert (answer.rcode if answer else None) == rcode
    assert Zones(OUTSIDE).local(names.from_text(name), qtype) is None


def test_names_whose_private_addresses_are_meant() -> None:
    zones_ = Zones(OUTSIDE, private=frozenset({names.from_text("plex.test")}))
    for name, meant in (("plex.test", True), ("a.b.plex.test", True), ("xplex.test", False), ("test", False), (".", False)):
        assert zones_.may_be_private(names.from_text(name)) == meant
