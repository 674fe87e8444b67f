"""RDATA: which types have names, addresses and hints in it, where these stand, and how it is written anew.

A name in RDATA is read once, from the upstream's message, since a compression pointer in it has no meaning in another one.
"""

from typing import NamedTuple

from embargo import names
from embargo.dns import message
from embargo.errors import MessageError
from embargo.lists import image
from embargo.names import Name

SERVICES = frozenset({message.SVCB, message.HTTPS})
_MANDATORY, _ECH = 0, 5  # SvcParamKeys
#: type → (octets of rdata before its names, how many names): those of RFC 3597 section 4, RFC 4034 and RFC 9460
_NAMES_IN = {
    **dict.fromkeys((message.NS, 3, 4, message.CNAME, 7, 8, 9, message.PTR, message.DNAME), (0, 1)),  # MD MF MB MG MR
    **dict.fromkeys((message.SOA, 14, 17), (0, 2)),  # MINFO RP
    **dict.fromkeys((message.MX, 18, 21, 36, message.SVCB, message.HTTPS), (2, 1)),  # AFSDB RT KX
    **dict.fromkeys((24, message.RRSIG), (18, 1)),  # SIG
    **dict.fromkeys((30, message.NSEC), (0, 1)),  # NXT
    26: (2, 2),  # PX
    message.SRV: (6, 1),
    message.NAPTR: (0, 1),  # it stands behind three texts, see `_first_name`
}
_SOA_NUMBERS = 20  # octets behind the names of a SOA record
#: types with octets of any number behind their names
_OPEN_ENDED = SERVICES | {24, 30, message.RRSIG, message.NSEC}
#: types whose target is where the client goes next
_LEADING = frozenset(
    {message.NS, message.CNAME, message.DNAME, message.MX, message.SRV, message.NAPTR, message.SVCB, message.HTTPS}
)


class Rdata(NamedTuple):
    """What RDATA at packet[start:end] consists of: packet[start:head], names, packet[tail:end]."""

    start: int
    end: int
    head: int
    tail: int
    names: tuple[Name, ...] = ()
    targets: tuple[Name, ...] = ()  # those of the names that the record leads to
    addresses: tuple[bytes, ...] = ()  # and addresses and address hints, of 4 or 16 octets


def read(packet: bytes, owner: Name, rtype: int, start: int, end: int, names_at: dict[int, Name]) -> Rdata:
    """Take RDATA apart. MessageError where it is not what its type says.

    Names that lead nowhere are read as well, since a client will, and later names may point to them. For `names_at` see
    `names.read`.
    """
    if rtype in (message.A, message.AAAA):
        if end - start != (4 if rtype == message.A else 16):
            raise MessageError(message.FORMERR, start)
        return Rdata(start, end, end, end, addresses=(packet[start:end],))
    if rtype not in _NAMES_IN:
        return Rdata(start, end, end, end)
    head = at = _first_name(packet, rtype, start, end)
    found: list[Name] = []
    for _ in range(_NAMES_IN[rtype][1]):
        name, at = names.read(packet, at, names_at)
        found.append(name)
    left = end - at
    if left < 0 or (left != (_SOA_NUMBERS if rtype == message.SOA else 0) and rtype not in _OPEN_ENDED):
        raise MessageError(message.FORMERR, start)
    if rtype not in _LEADING:
        return Rdata(start, end, head, at, tuple(found))
    if rtype not in SERVICES:
        return Rdata(start, end, head, at, tuple(found), tuple(found))
    target = owner if found[0] == names.ROOT else found[0]  # RFC 9460 section 2.5
    return Rdata(start, end, head, at, tuple(found), (target,), _hints(packet, at, end))


def _first_name(packet: bytes, rtype: int, start: int, end: int) -> int:
    """Where in a record's rdata its names begin."""
    if rtype != message.NAPTR:
        return start + _NAMES_IN[rtype][0]
    at = start + 4
    for _ in range(3):  # flags, services, regexp
        if at >= end:
            raise MessageError(message.FORMERR, start)
        at += 1 + packet[at]
    return at


def _hints(packet: bytes, start: int, end: int) -> tuple[bytes, ...]:
    hints: list[bytes] = []
    for key, value in message.options(packet, start, end):
        width = {4: 4, 6: 16}.get(key)  # ipv4hint, ipv6hint (RFC 9460 section 7.3)
        if width:
            hints += [value[i : i + width] for i in range(0, len(value) - len(value) % width, width)]
    return tuple(hints)


def without_ech(params: bytes) -> bytes:
    """SvcParams without ECH keys, and without the demand that a client understand them (RFC 9460 section 8)."""
    made = bytearray()
    for key, value in message.options(params, 0, len(params)):
        if key == _MANDATORY:
            value = b"".join(value[i : i + 2] for i in range(0, len(value), 2) if value[i : i + 2] != _ECH.to_bytes(2))
        if key != _ECH and (value or key != _MANDATORY):
            made += key.to_bytes(2) + len(value).to_bytes(2) + value
    return bytes(made)


def is_private(address: bytes) -> bool:
    """Whether an address cannot exist on the Internet: private, loopback, link-local, unspecified, or IPv6 that carries one."""
    if len(address) == 16:
        inner = image.embedded(address)
        if inner is not None:
            return is_private(inner)
        number = int.from_bytes(address)
        return any(number >> 128 - bits == prefix for prefix, bits in _PRIVATE6)
    number = int.from_bytes(address)
    return any(number >> 32 - bits == prefix for prefix, bits in _PRIVATE4)


#: RFC 1122 (this network, loopback), RFC 1918, RFC 6598, RFC 3927: (prefix, bits)
_PRIVATE4 = (
    (0, 8), (10, 8), (127, 8), (0xAC1, 12), (0xC0A8, 16), (0xA9FE, 16), (0x191, 10),
)  # fmt: skip
_PRIVATE6 = ((0, 127), (0xFC >> 1, 7), (0xFE80 >> 6, 10))  # RFC 4291 (unspecified, loopback, link-local), RFC 4193


class Writer:
    """Records behind a question, with compressed names."""

    def __init__(self, packet: bytes, qname: Name, begin: int) -> None:
        """`packet`: where the records come from; `begin`: where they stand in the message that is written."""
        self.body = bytearray()
        self.ttls: list[tuple[int, int]] = []  # (offset in `body`, seconds)
        self._packet = packet
        self._begin = begin
        self._places: dict[Name, int] = {}
        self._note(qname, 12)

    def add(self, owner: Name, rtype: int, ttl: int, rdata: Rdata, *, ech: bool = True) -> None:
        """Write a record of class IN. `ech`: with keys of Encrypted Client Hello.

        Names in RDATA are compressed where the upstream's were: so the whole is no larger than what was read, and no type is
        compressed that must not be (RFC 3597 section 4).
        """
        self._name(owner, compressed=True)
        self.ttls.append((len(self.body) + 4, ttl))
        start = len(self.body)
        self.body += message.RECORD.pack(rtype, message.IN, ttl, 0)
        self.body += self._packet[rdata.start : rdata.head]
        compressed = sum(map(len, rdata.names)) > rdata.tail - rdata.head
        for name in rdata.names:
            self._name(name, compressed=compressed)
        rest = self._packet[rdata.tail : rdata.end]
        self.body += rest if ech or rtype not in SERVICES else without_ech(rest)
        self.body[start + 8 : start + 10] = (len(self.body) - start - message.RECORD.size).to_bytes(2)

    def _name(self, name: Name, *, compressed: bool) -> None:
        at = self._begin + len(self.body)
        if not compressed:
            self.body += name
        else:
            for above in names.suffixes(name):
                if above in self._places:
                    self.body += name[: len(name) - len(above)] + (0xC000 | self._places[above]).to_bytes(2)
                    break
            else:
                self.body += name
        self._note(name, at)

    def _note(self, name: Name, at: int) -> None:
        """Later names may point to this one, and to the names above it."""
        for above in names.suffixes(name):
            place = at + len(name) - len(above)
            if above in self._places or place > _FARTHEST:
                break
            self._places[above] = place


_FARTHEST = 0x3FFF  # the last octet that a compression pointer can lead to
