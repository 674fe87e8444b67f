"""Packets that no kernel sends by itself: fragments, IP options, extension headers. Needs scapy, which is slow to load."""

import random
from typing import Any

from embargo.verify.packets import Probe
from embargo.verify.sandbox import Addresses

NEEDS_SCAPY = "needs scapy: apt-get install python3-scapy"
MESSAGE = b"embargo verify"

Crafted = tuple[Probe, list[bytes]]  # the probe, and the IP packets that are sent for it


def crafted(each: Addresses, target: str, port: int) -> dict[str, list[Crafted]]:
    """Packets that hide the port but not the address, by kind. Raises ImportError without scapy."""
    from scapy.layers import inet, inet6  # optional, and slow to load

    split: Any = inet.fragment
    split6: Any = inet6.fragment6
    udp = inet.UDP(sport=_fresh(), dport=port) / (MESSAGE * 40)
    syn = inet.TCP(sport=_fresh(), dport=port, flags="S")

    def made(proto: str, form: str, *layers: Any) -> Crafted:
        return Probe(proto, target, port, form), list(map(bytes, layers))

    if each.version == 4:
        head = inet.IP(src=each.client, dst=target, id=_fresh())
        recorded = inet.IP(src=each.client, dst=target, options=[inet.IPOption_RR()])
        return {
            "fragments": [
                made("udp", "in fragments", *split(head / udp, fragsize=200)),
                made("tcp", "in fragments of 8 octets", *split(head / syn, fragsize=8)),
            ],
            "options": [made("tcp", "with a record-route option", recorded / syn), made("udp", "with options", recorded / udp)],
        }
    bare = inet6.IPv6(src=each.client, dst=target)
    hops, options = inet6.IPv6ExtHdrHopByHop(), inet6.IPv6ExtHdrDestOpt()
    return {
        "fragments": [
            made("udp", "in fragments", *split6(bare / inet6.IPv6ExtHdrFragment(id=_fresh()) / udp, 300)),
            made("tcp", "in an atomic fragment", bare / inet6.IPv6ExtHdrFragment(id=_fresh()) / syn),
        ],
        "extension headers": [
            made("tcp", "behind hop-by-hop options", bare / hops / syn),
            made("udp", "behind both kinds of options", bare / hops / options / udp),
        ],
        "destination options": [made("tcp", "behind destination options", bare / options / syn)],
    }


def _fresh() -> int:
    """A random port or identification: flows of an earlier run may be marked as let through."""
    return random.randrange(0x4000, 0xF000)


def syn(each: Addresses, target: str, port: int) -> Crafted:
    """The first packet of a TCP connection to an address that the kernel would not send to. ImportError without scapy."""
    from scapy.layers import inet, inet6

    packet = inet6.IPv6(src=each.client, dst=target) / inet.TCP(sport=_fresh(), dport=port, flags="S")
    return Probe("tcp", target, port, "by hand"), [bytes(packet)]
