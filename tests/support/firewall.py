"""A naive reading of a ruleset's values: what the kernel would do with one packet. Only what our expressions need."""

import ipaddress
import re
from collections import Counter as Count
from dataclasses import dataclass, field
from typing import assert_never

from embargo.firewall import table

ANY = ("nobody", 0)


@dataclass(frozen=True)
class Packet:
    src: str
    dst: str
    proto: str = "tcp"
    port: int = 443
    iif: str = ""
    oif: str = ""
    refusal: bool = False  # a reset, or an ICMP error
    sport: int = 50_000
    content: bytes = b""
    mark: int = 0  # of its flow
    uid: int = -1  # of the process that sent it, when that runs here

    @property
    def family(self) -> int:
        return ipaddress.ip_address(self.dst).version


@dataclass
class Fate:
    """`verdict`: accept, reject KIND or redirect PORT; the counters that moved and the prefixes that were logged."""

    verdict: str = "accept"
    counted: Count[str] = field(default_factory=Count)
    logged: list[str] = field(default_factory=list)
    mark: int = 0  # of the flow, afterwards


class _Returned(Exception):
    pass


class _Decided(Exception):
    pass


class Firewall:
    """The table; `alive` is whether the guardian has said lately that somebody answers."""

    def __init__(self, ruleset: table.Ruleset, *, alive: bool = True) -> None:
        self._chains = {chain.name: chain for chain in ruleset.chains}
        self._sets = {each.name: each for each in ruleset.sets}
        self._alive = alive

    def pass_through(self, hook: str, packet: Packet) -> Fate:
        fate = Fate(mark=packet.mark)
        try:
            for chain in self._chains.values():
                if chain.hook is not None and chain.hook.name == hook:
                    self._walk(chain, packet, fate)
        except _Decided:
            pass
        return fate

    def _walk(self, chain: table.Chain, packet: Packet, fate: Fate) -> None:
        try:
            for rule in chain.rules:
                self._rule(rule, packet, fate)
        except _Returned:
            pass

    def _rule(self, rule: table.Rule, packet: Packet, fate: Fate) -> None:
        for expression in rule.expressions:
            match expression:
                case table.Meta(key, value):
                    if not self._meta(key, value, packet):
                        return
                case table.Address():
                    chain = self._address(expression, packet)
                    if chain is None:
                        return
                    if expression.vmap:
                        self._walk(self._chains[chain], packet, fate)
                case table.Port(proto, port, side):
                    if (packet.proto, packet.port if side == "dport" else packet.sport) != (proto, port):
                        return
                case table.Owner(uid):
                    if packet.uid != uid:
                        return
                case table.Begins(octets):
                    if not re.match(re.escape(octets).replace(b"0", b"[0-?]"), packet.content):
                        return
                case table.Judged(mask, set_):
                    if find(self._sets[set_], fate.mark & mask) is None:
                        return
                    raise _Decided
                case table.Mark(mask, value):
                    fate.mark = fate.mark & ~mask | value
                case table.Accept():
                    raise _Decided
                case table.Counter(name):
                    fate.counted[name] += 1
                case table.Log(prefix):
                    fate.logged.append(prefix)
                case table.Reject(kind):
                    fate.verdict = f"reject {kind}"
                    raise _Decided
                case table.Refusal(proto):
                    if not packet.refusal or packet.proto != proto:
                        return
                case table.Redirect(port):
                    fate.verdict = f"redirect {port}"
                    raise _Decided
                case table.Jump(name):
                    self._walk(self._chains[name], packet, fate)
                case table.Return():
                    raise _Returned
                case _:
                    assert_never(expression)

    def _meta(self, key: str, value: str, packet: Packet) -> bool:
        if value == "@alive":  # the guardian puts the lan interfaces there
            return self._alive and any(packet.iif in each.words for name, each in self._sets.items() if name.startswith("lan_"))
        if value.startswith("@"):
            return {"iifname": packet.iif, "oifname": packet.oif}[key] in self._sets[value[1:]].words
        return value == {"nfproto": f"ipv{packet.family}", "l4proto": packet.proto}[key]

    def _address(self, expression: table.Address, packet: Packet) -> str | None:
        """The chain that an address leads to, "" from a set, None when it is not there."""
        if expression.family != packet.family:
            return None
        packed = ipaddress.ip_address(packet.dst if expression.side == "daddr" else packet.src).packed
        if expression.inside:
            packed = packed[expression.inside : expression.inside + 4]
        key = int.from_bytes(packed)
        if expression.prefix:
            key &= int.from_bytes(table.mask_of(4 if len(packed) == 4 else 6, expression.prefix))
        return find(self._sets[expression.set_], key)


def find(each: table.Set, key: int) -> str | None:
    return next((chain for first, last, chain in each.elements if first <= key <= last), None)
