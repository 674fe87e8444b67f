"""Which servers a name is asked at, and which names are answered here without asking: local records and special-use names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from embargo import names
from embargo.dns import compose, message, special
from embargo.dns.message import Answer
from embargo.dns.special import Special
from embargo.dns.upstream import Upstreams
from embargo.names import Name

TTL = 600  # seconds that a client may keep a local record or the answer for a special-use name

_NODATA = compose.negative(message.NOERROR, TTL)
_NXDOMAIN = compose.negative(message.NXDOMAIN, TTL)
_LOOPBACK = {
    message.A: compose.addresses((b"\x7f\0\0\1",), TTL),
    message.AAAA: compose.addresses((bytes(15) + b"\1",), TTL),
}
_LOCALHOST = compose.pointer(names.from_text("localhost"), TTL)
#: asked about a top-level domain, which is no host
_OF_ZONES = frozenset({message.NS, message.SOA, message.DS, message.DNSKEY})
_WIDTHS = {message.A: 4, message.AAAA: 16}  # octets of an address


@dataclass(frozen=True, slots=True)
class Zones:
    """Default upstreams, upstreams of zones, and local records. Replaced whole, never changed."""

    default: Upstreams
    forward: Mapping[Name, Upstreams] = field(default_factory=dict)
    hosts: Mapping[Name, tuple[bytes, ...]] = field(default_factory=dict)  # name → addresses of 4 or 16 octets
    reverse: Mapping[Name, Name] = field(default_factory=dict)  # reverse name → name
    kept: frozenset[Name] = frozenset()  # zones that no upstream is asked about; the root: names of one label
    private: frozenset[Name] = frozenset()  # zones whose names may have private addresses
    #: answers of local records that were asked for: at most three for each name, so the hosts files bound it
    _composed: dict[tuple[Name, int], Answer] = field(default_factory=dict, compare=False, repr=False)

    def upstreams(self, qname: Name) -> Upstreams:
        """The servers of the closest zone that has some of its own, else the default ones."""
        if not self.forward:
            return self.default
        return next((self.forward[suffix] for suffix in names.suffixes(qname) if suffix in self.forward), self.default)

    def special(self, qname: Name, qtype: int) -> Answer | None:
        """The answer for a special-use name; None for all others."""
        kind = special.kind(qname, self.forward)
        if kind is None:  # nearly always
            return None
        match kind:
            case Special.NODATA:
                return _NODATA
            case Special.LOOPBACK:
                return _LOOPBACK.get(qtype, _NODATA)
            case Special.LOCALHOST:
                return self.local(qname, qtype) or (_LOCALHOST if qtype == message.PTR else _NODATA)
            case Special.NXDOMAIN:
                return self.local(qname, qtype) or _NXDOMAIN

    def local(self, qname: Name, qtype: int) -> Answer | None:
        """The answer of a hosts file, NODATA where it has the name without such records; for a name that it does not have, the
        answer that there is none, if no upstream is to be asked about it, else None."""
        if qname in self.hosts:
            wanted = qtype if qtype in _WIDTHS else 0
        elif qname in self.reverse:
            wanted = qtype if qtype == message.PTR else 0
        else:
            return self._kept(qname, qtype) if self.kept else None
        composed = self._composed.get((qname, wanted))
        if composed is None:
            composed = self._composed[qname, wanted] = self._compose(qname, wanted)
        return composed

    def _kept(self, qname: Name, qtype: int) -> Answer | None:
        """The answer for a name in a zone that is kept here. The closest zone decides."""
        for suffix in names.suffixes(qname):
            if suffix in self.forward:
                return None
            if suffix in self.kept:
                return _NODATA if suffix == qname else _NXDOMAIN
        # not NXDOMAIN, which would say that there is nothing below either (RFC 8020): the name may be a top-level domain
        one_label = len(qname) == 2 + qname[0] and qname != names.ROOT
        return _NODATA if one_label and names.ROOT in self.kept and qtype not in _OF_ZONES else None

    def may_be_private(self, qname: Name) -> bool:
        """Whether private addresses of this name are meant."""
        return any(suffix in self.private for suffix in names.suffixes(qname))

    def _compose(self, qname: Name, qtype: int) -> Answer:
        """`qtype`: A, AAAA or PTR; 0 for all types that no local record has."""
        if qtype == message.PTR:
            return compose.pointer(self.reverse[qname], TTL)
        addresses = [address for address in self.hosts.get(qname, ()) if len(address) == _WIDTHS.get(qtype)]
        return compose.addresses(addresses, TTL) if addresses else _NODATA
