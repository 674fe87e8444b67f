"""A policy as one immutable byte string, mapped read-only by every process that judges.

Layout, little-endian, each section 8-aligned:

    header   magic, version, zero, SHA-256 of all that follows it, section offsets, counts
    strings  JSON: classes and sources
    decisions 16 octets each: uint16 class, uint16 source, uint32 line, uint32 offset and uint32 length of the rule's text
    rules    the texts of the rules, each once
    claims   uint32 words: per claim list its length and then its decisions' numbers; word 0 is the empty list
    slots    power-of-two table of uint32: 0 = free, else 1 + index of a record; open addressing, linear probing
    records  per name: uint32 offset of its blob, uint32 claims on itself, uint32 claims on names below (places in claims)
    blob     the names in wire form, end to end
    v4, v6   disjoint sorted ranges: firsts, then lasts (uint32 each; for IPv6 16 octets big-endian each), then claims

A hash hit is verified against the name in the blob, so the table is exact. Lookup hashes the suffixes of a name from the
longest; claims were worked out at compile time (see `policy`), so the first suffix found decides. The table is at most
half full: probes stay short whatever names are asked, because they depend on the listed names alone.
"""

import hashlib
import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any
from zlib import crc32

from embargo.errors import ImageError
from embargo.names import Name
from embargo.policy import Claims, Class, Decision, Level, Policy, Source

MAGIC = b"EMBARGO\n"
VERSION = 1
_HEADER = struct.Struct("<8sII32s12Q")
_NUMBERS = struct.Struct("<12Q")
_FIELDS = (
    "strings", "decisions", "rules", "claims", "slots", "records", "blob", "v4", "v6", "end", "names", "networks",
)  # fmt: skip
_DECISION = struct.Struct("<HHIII")
MEMO = 4096  # claim lists kept as objects; a flood of different names must not fill memory


def encode(policy: Policy) -> bytes:
    """The image of a policy. The same policy gives the same bytes."""
    writer = _Writer()
    count = 1 << max(3, (2 * len(policy.names)).bit_length())
    mask = count - 1
    slots = array("I", bytes(4 * count))
    records = array("I")
    blob = bytearray()
    for number, name in enumerate(sorted(policy.names), start=1):
        claimed = policy.names[name]
        records.extend((len(blob), writer.place(claimed.itself), writer.place(claimed.below)))
        blob += name
        slot = crc32(name) & mask
        while slots[slot]:
            slot = (slot + 1) & mask
        slots[slot] = number
    v4 = policy.networks.get(4, ())
    v6 = policy.networks.get(6, ())
    ranges4 = array("I", [*(r[0] for r in v4), *(r[1] for r in v4), *(writer.place(r[2]) for r in v4)])
    ranges6 = b"".join([*(r[0].to_bytes(16) for r in v6), *(r[1].to_bytes(16) for r in v6)])
    claims6 = array("I", [writer.place(r[2]) for r in v6])
    strings = json.dumps({"classes": policy.classes, "sources": policy.sources}, separators=(",", ":")).encode()
    sections: list[bytes | bytearray] = [
        strings, writer.decisions, writer.rules, writer.claims.tobytes(), slots.tobytes(), records.tobytes(), blob,
        ranges4.tobytes(), ranges6 + claims6.tobytes(),
    ]  # fmt: skip
    offsets: list[int] = []
    body = bytearray()
    for section in sections:
        offsets.append(_HEADER.size + len(body))
        body += section
        body += bytes(-len(section) % 8)
    numbers = (*offsets, _HEADER.size + len(body), len(policy.names), len(v4) + len(v6))
    digest = hashlib.sha256(_NUMBERS.pack(*numbers) + body).digest()
    return _HEADER.pack(MAGIC, VERSION, 0, digest, *numbers) + bytes(body)


class _Writer:
    """Claim lists, decisions and rule texts, each written once."""

    def __init__(self) -> None:
        self.decisions = bytearray()
        self.rules = bytearray()
        self.claims = array("I", [0])
        self._places: dict[Claims, int] = {(): 0}
        self._numbers: dict[Decision, int] = {}
        self._texts: dict[str, int] = {}

    def place(self, claims: Claims) -> int:
        place = self._places.get(claims)
        if place is None:
            numbers = [self._number(decision) for decision in claims]
            place = self._places[claims] = len(self.claims)
            self.claims.append(len(numbers))
            self.claims.extend(numbers)
        return place

    def _number(self, decision: Decision) -> int:
        number = self._numbers.get(decision)
        if number is None:
            number = self._numbers[decision] = len(self._numbers)
            text = decision.rule.encode()
            start = self._texts.setdefault(decision.rule, len(self.rules))
            if start == len(self.rules):
                self.rules += text
            self.decisions += _DECISION.pack(decision.class_, decision.source, decision.line, start, len(text))
        return number


class Image:
    """A verified image. Immutable; safe to share between any number of readers."""

    def __init__(self, buffer: bytes | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        self._at = at = _verify(view)
        try:
            strings: dict[str, Any] = json.loads(bytes(view[at["strings"] : at["decisions"]]).rstrip(b"\0"))
            self.classes = tuple(Class(*c) for c in strings["classes"])
            self.sources = tuple(Source(s[0], Level(s[1]), *s[2:]) for s in strings["sources"])
            self._decisions = view[at["decisions"] : at["rules"]]
            self._rules = view[at["rules"] : at["claims"]]
            self._claims = view[at["claims"] : at["slots"]].cast("I")
            self._slots = view[at["slots"] : at["records"]].cast("I")
            self._records = view[at["records"] : at["records"] + 12 * at["names"]].cast("I")
            self._blob = view[at["blob"] : at["v4"]]
        except (ValueError, TypeError, LookupError) as error:
            raise ImageError(f"the image contradicts itself: {error}") from None
        self.digest = bytes(view[16:48]).hex()
        self._mask = len(self._slots) - 1
        self._memo: dict[int, Claims] = {0: ()}
        self._ranges = {4: _Ranges(view, at["v4"], at["v6"], 4), 6: _Ranges(view, at["v6"], at["end"], 16)}

    def __len__(self) -> int:
        return self._at["names"]

    @property
    def networks(self) -> int:
        return self._at["networks"]

    def lookup(self, name: Name) -> Claims:
        """Who claims this name, in deciding order; () when nobody does."""
        slots, mask = self._slots, self._mask
        key: bytes = name
        start = 0
        while True:
            slot = crc32(key) & mask
            while number := slots[slot]:
                record = 3 * number - 3
                begin = self._records[record]
                if self._blob[begin : begin + len(key)] == key:  # it ends in its zero octet, so the names are equal
                    return self._at_place(self._records[record + (2 if start else 1)])
                slot = (slot + 1) & mask
            step = name[start]
            if not step:
                return ()
            start += 1 + step
            key = name[start:]

    def _at_place(self, place: int) -> Claims:
        claims = self._memo.get(place)
        if claims is None:
            count = self._claims[place]
            if count == 1:  # nearly always, and a large list has as many places as names
                return (self._decision(self._claims[place + 1]),)
            claims = tuple(map(self._decision, self._claims[place + 1 : place + 1 + count]))
            if len(self._memo) >= MEMO:
                self._memo = {0: ()}
            self._memo[place] = claims
        return claims

    def _decision(self, number: int) -> Decision:
        class_, source, line, start, length = _DECISION.unpack_from(self._decisions, 16 * number)
        return Decision(class_, source, line, str(self._rules[start : start + length], "utf-8"))

    def lookup_address(self, packed: bytes) -> Claims:
        """Who claims this address (4 or 16 octets, network order). An IPv6 form that carries an IPv4 address counts as both."""
        if len(packed) == 4:
            return self._at_place(self._ranges[4].find(packed))
        claims = self._at_place(self._ranges[6].find(packed))
        inner = embedded(packed)
        return self._both(claims, self._at_place(self._ranges[4].find(inner))) if inner else claims

    def _both(self, claims: Claims, more: Claims) -> Claims:
        """The claims of two forms of one address: those of the earlier level, or each class once."""
        if not claims or not more:
            return claims or more
        level, other = (self.sources[each[0].source].level for each in (claims, more))
        if level != other:
            return claims if level < other else more
        have = {claim.class_ for claim in claims}
        return claims + tuple(claim for claim in more if claim.class_ not in have)

    def ranges(self, family: int) -> Iterator[tuple[int, int, Claims]]:
        """The listed addresses of a family as disjoint sorted ranges (first, last, claims)."""
        for first, last, claims in self._ranges[family]:
            yield first, last, self._at_place(claims)


class _Ranges:
    def __init__(self, view: memoryview, start: int, end: int, width: int) -> None:
        count = (end - start) // (2 * width + 4)
        data = bytes(view[start : start + count * 2 * width])
        if width == 4:
            numbers = memoryview(data).cast("I")
            self.firsts, self.lasts = numbers[:count].tolist(), numbers[count:].tolist()
        else:
            words = [int.from_bytes(data[i : i + 16]) for i in range(0, len(data), 16)]
            self.firsts, self.lasts = words[:count], words[count:]
        tail = start + count * 2 * width
        self.claims = view[tail : tail + 4 * count].cast("I")

    def find(self, packed: bytes) -> int:
        value = int.from_bytes(packed)
        i = bisect_right(self.firsts, value) - 1
        return self.claims[i] if i >= 0 and value <= self.lasts[i] else 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.firsts, self.lasts, self.claims, strict=True)


def embedded(packed: bytes) -> bytes | None:
    """The IPv4 address inside an IPv6 one: mapped (RFC 4291), NAT64 (RFC 6052, 8215), 6to4 (RFC 3056); else None."""
    if packed[:12] == b"\0\0\0\0\0\0\0\0\0\0\xff\xff" or packed[:12] == b"\0\x64\xff\x9b\0\0\0\0\0\0\0\0":
        return packed[12:]
    if packed[:6] == b"\0\x64\xff\x9b\0\1":
        return packed[12:]
    if packed[:2] == b"\x20\x02":
        return packed[2:6]
    return None


def _verify(view: memoryview) -> dict[str, int]:
    if len(view) < _HEADER.size:
        raise ImageError("the image is cut short")
    magic, version, zero, digest, *numbers = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise ImageError("this is not a policy image")
    if version != VERSION or zero:
        raise ImageError(f"the image has version {version}.{zero}, this program reads version {VERSION}.0")
    at = dict(zip(_FIELDS, numbers, strict=True))
    if at["end"] != len(view):
        raise ImageError(f"the image has {len(view)} octets, its header says {at['end']}")
    if hashlib.sha256(_NUMBERS.pack(*numbers) + view[_HEADER.size :]).digest() != digest:
        raise ImageError("the image is damaged: its checksum does not match")
    if not _fits(at):
        raise ImageError("the image contradicts itself: its sections do not fit their counts")
    return at


def _fits(at: dict[str, int]) -> bool:
    places = [at[field] for field in _FIELDS[:10]]
    slots = (at["records"] - at["slots"]) // 4
    return (
        places[0] == _HEADER.size
        and places == sorted(places)
        and not any(place % 8 for place in places)
        and 12 * at["names"] <= at["blob"] - at["records"] < 12 * at["names"] + 8
        and slots > at["names"]  # a full table would be searched for ever
        and not slots & (slots - 1)
        and at["networks"] == (at["v6"] - at["v4"]) // 12 + (at["end"] - at["v6"]) // 36
    )
