"""What the settings of an order mean to the engine: text of a configuration to values."""

from embargo import names
from embargo.daemon.resolve.orders import Settings
from embargo.dns.judgement import BlockMode
from embargo.dns.upstream import Strip, Upstreams, server
from embargo.dns.zones import Zones
from embargo.lists import lists
from embargo.names import Name


def block_mode(settings: Settings) -> BlockMode:
    """What blocked names are answered with."""
    mode, ttl = settings.block_mode, settings.block_ttl
    if mode == "null":
        return BlockMode("null", ttl, (bytes(4),), (bytes(16),))
    if isinstance(mode, str):
        return BlockMode(mode, ttl)
    packed = [_packed(address) for address in mode]
    return BlockMode("address", ttl, tuple(p for p in packed if len(p) == 4), tuple(p for p in packed if len(p) == 16))


def zones(settings: Settings) -> Zones:
    """Upstreams and local records."""
    hosts: dict[Name, tuple[bytes, ...]] = {}
    reverse: dict[Name, Name] = {}
    for text, addresses in settings.hosts.items():
        name = names.from_text(text)
        hosts[name] = tuple(map(_packed, addresses))
        for packed in hosts[name]:
            reverse.setdefault(names.reverse(packed), name)
    # private addresses in answers of a zone's own servers are wanted: the administrator has named them
    strip = Strip(ech=settings.strip_ech)
    forward = {names.from_text(zone): tuple(map(server, to)) for zone, to in settings.forward.items()}
    return Zones(
        Upstreams(tuple(map(server, settings.upstream)), strip._replace(private=settings.rebind)),
        {zone: Upstreams(to, strip, common_labels=sum(1 for _ in names.labels(zone))) for zone, to in forward.items()},
        hosts,
        reverse,
        frozenset(map(names.from_text, settings.local)),
        frozenset(map(names.from_text, settings.rebind_except)),
    )


def _packed(address: str) -> bytes:
    return lists.address_to_int(address).to_bytes(16 if ":" in address else 4)
