"""A policy as one immutable byte string, mapped read-only by every process that judges.

Layout, little-endian, each section 8-aligned:

    header   magic, version, zero, SHA-256 of all that follows it, section offsets, counts
    strings  JSON: classes, sources, and the policy's cuts
    decisions 16 octets each: uint16 class, uint16 source, uint32 line, uint32 offset and uint32 length of the rule's text
    rules    the texts of the rules, each once
    claims   uint32 words: per claim list its length, then the numbers of its decisions; word 0 is the empty list
    pairs    uint32 words, two for each name that is not plain: where in `claims` those on itself and on names below begin
    slots    16 octets each: uint32 hash, uint32 1 + offset of the name in blob (0: free), uint32 line, uint16 source,
             uint16 kind; where the kind is ELABORATE, the line is the number of a pair
    blob     the names in wire form, end to end
    v4, v6   disjoint sorted ranges: firsts, then lasts (uint32 each; for IPv6 16 octets big-endian each), then claims

The slots stand in the order of their hashes (CRC-32 of the name), each at its home, hash * homes >> 32, or in the first free
slot behind it: a search begins at the home and ends at the first larger hash. A hash hit is verified against the name in the
blob, so the table is exact. Lookup hashes the suffixes of a name from the longest; claims were worked out at compile time
(see `policy`), so the first suffix found decides. The decision about a plain name is in its slot; its rule is the name itself.
"""

import hashlib
import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

from embargo import accelerator, names, records
from embargo.errors import ImageError
from embargo.lists.columns import SIGNS
from embargo.lists.policy import Action, Claims, Class, Decision, Level, Policy, Source, Switchboard
from embargo.names import Name

MAGIC = b"EMBARGO\n"
VERSION = 2
_HEADER = struct.Struct("<8sII32s14Q")
_NUMBERS = struct.Struct("<14Q")
_FIELDS = (
    "strings", "decisions", "rules", "claims", "pairs", "slots", "blob", "v4", "v6", "end",
    "names", "networks", "homes", "elaborate",
)  # fmt: skip
_SECTIONS = 10
_DECISION, _CLASS = struct.Struct("<HHIII"), struct.Struct("<H")  # the class stands first
MEMO = 4096  # claim lists kept as objects; a flood of different names must not fill memory
SUFFIX, EXACT, ELABORATE = 1, 2, 3  # kinds of slot

#: what a record of an answer leads to: its owner, the names that it points to, the addresses in it
Lead = tuple[Name, tuple[Name, ...], tuple[bytes, ...]]

_native = accelerator.load("image")


def encode(policy: Policy) -> bytes:
    """The image of a policy. The same policy gives the same bytes. ImageError when it is too large for one."""
    if len(policy.sources) > 0xFFFF:
        raise ImageError("the lists are too large: there are at most 65535 lists")
    writer = _Writer()
    pairs, slots, blob = _names(policy, writer)
    v4, v6 = (policy.networks.get(family, ()) for family in (4, 6))
    ranges4 = array("I", [*(r[0] for r in v4), *(r[1] for r in v4), *(writer.place(r[2]) for r in v4)])
    ranges6 = b"".join([*(r[0].to_bytes(16) for r in v6), *(r[1].to_bytes(16) for r in v6)])
    claims6 = array("I", [writer.place(r[2]) for r in v6])
    cuts = [name.decode("latin-1") for name in policy.cuts]
    strings = json.dumps({"classes": policy.classes, "sources": policy.sources, "cuts": cuts}, separators=(",", ":")).encode()
    sections: list[bytes | bytearray | memoryview] = [
        strings, writer.decisions, writer.rules, writer.claims.tobytes(), pairs.tobytes(), slots, blob, ranges4.tobytes(),
        ranges6 + claims6.tobytes(),
    ]  # fmt: skip
    return _assembled(sections, (len(policy), len(v4) + len(v6), _homes(len(policy)), len(policy.names)))


def _names(policy: Policy, writer: "_Writer") -> tuple["array[int]", bytes, bytes]:
    """(pairs, slots, blob) of all names: first the plain ones, then the others in their order."""
    plain, others = policy.plain, sorted(policy.names)
    blob = plain.names + b"".join(others)
    if len(blob) >= 0xFFFFFFFF:
        raise ImageError("the lists are too large: all names together have at most 4 GiB")
    starts, lines, sources = plain.starts[:], plain.lines[:], plain.sources + array("H", bytes(2 * len(others)))
    kinds = plain.exact.translate(_KINDS) + bytes([ELABORATE]) * len(others)
    pairs = array("I")
    at = len(plain.names)
    for number, name in enumerate(others):
        claimed = policy.names[name]
        pairs.extend((writer.place(claimed.itself), writer.place(claimed.below)))
        starts.append(at)
        lines.append(number)
        at += len(name)
    return pairs, table(blob, starts, lines, sources, kinds, _homes(len(policy))), blob


def _assembled(sections: Sequence[bytes | bytearray | memoryview], counts: tuple[int, int, int, int]) -> bytes:
    """Header and sections, each 8-aligned. `counts`: names, networks, homes, names that are not plain."""
    offsets: list[int] = []
    body: list[bytes | bytearray | memoryview] = []
    at = _HEADER.size
    for section in sections:
        offsets.append(at)
        body += (section, bytes(-len(section) % 8))
        at += len(section) + -len(section) % 8
    numbers = _NUMBERS.pack(*offsets, at, *counts)
    digest = hashlib.sha256(numbers)
    for section in body:
        digest.update(section)
    return b"".join((_HEADER.pack(MAGIC, VERSION, 0, digest.digest(), *_NUMBERS.unpack(numbers)), *body))


def _homes(count: int) -> int:
    """How many homes a table of so many names has: three quarters are taken, so a miss costs two or three slots."""
    return max(8, 4 * count // 3)


_KINDS = bytes.maketrans(b"\0\1", bytes((SUFFIX, EXACT)))


def table(blob: bytes, starts: "array[int]", lines: "array[int]", sources: "array[int]", kinds: bytes, homes: int) -> bytes:
    """The slots of these names, as octets. The last one is free, so that every search ends."""
    if _native:
        slots: bytes = _native.table(blob, starts, lines, sources, kinds, homes)
        return slots
    hashes = [crc32(blob[start : names.end(blob, start)]) for start in starts]
    order = sorted(range(len(starts)), key=hashes.__getitem__)
    words = array("I", bytes(16 * homes))
    slot = -1
    for number in order:
        slot = max(hashes[number] * homes >> 32, slot + 1)
        if 4 * slot + 4 > len(words):
            words.extend(bytes(4))
        words[4 * slot : 4 * slot + 4] = array(
            "I", (hashes[number], starts[number] + 1, lines[number], sources[number] | kinds[number] << 16)
        )
    if words[-3]:
        words.extend(bytes(4))
    return words.tobytes()


class _Writer:
    """Writes claim lists, decisions and rule texts, each once."""

    def __init__(self) -> None:
        self.decisions = bytearray()
        self.rules = bytearray()
        self.claims = array("I", [0])
        self._places: dict[Claims, int] = {(): 0}
        self._numbers: dict[Decision, int] = {}
        self._texts: dict[str, int] = {}

    def place(self, claims: Claims) -> int:
        """Where in the section `claims` this list begins."""
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
    """A verified image. Immutable, so any number of readers may share it. ImageError when it is damaged.

    `trusted`: these octets were verified by another process, so the checksum is not computed again (25 ms for a million
    names).
    """

    def __init__(self, buffer: bytes | memoryview, *, trusted: bool = False) -> None:
        view = memoryview(buffer).cast("B")
        self._at = at = _verify(view, trusted)
        try:
            strings: dict[str, Any] = records.from_json(bytes(view[at["strings"] : at["decisions"]]).rstrip(b"\0"))
            self.classes = tuple(Class(*c) for c in strings["classes"])
            self.sources = tuple(Source(s[0], Level(s[1]), *s[2:]) for s in strings["sources"])
            self.cuts = frozenset(bytes(name, "latin-1") for name in strings.get("cuts", ()))  # images of 0.1 have none
            self._decisions = view[at["decisions"] : at["rules"]]
            self._rules = view[at["rules"] : at["claims"]]
            self._claims = view[at["claims"] : at["pairs"]].cast("I")
            self._pairs = view[at["pairs"] : at["slots"]].cast("I")
            self._slots = view[at["slots"] : at["blob"]].cast("I")
            self._blob = view[at["blob"] : at["v4"]]
            if self._slots[-3]:  # a search would not end
                raise ValueError("its last slot is taken")
        except (ValueError, TypeError, LookupError) as error:
            raise ImageError(f"the image contradicts itself: {error}") from None
        self.digest = bytes(view[16:48]).hex()
        finder = _native.Finder if _native else Finder
        self.finder = finder(self._slots, self._blob, at["homes"])
        self.class_of = [self.classes.index(source.class_) for source in self.sources]
        self._memo: dict[int, Claims] = {0: ()}
        self._ranges = {4: _Ranges(view, at["v4"], at["v6"], 4), 6: _Ranges(view, at["v6"], at["end"], 16)}

    def __len__(self) -> int:
        """How many names are listed."""
        return self._at["names"]

    @property
    def networks(self) -> int:
        """How many ranges of addresses are listed."""
        return self._at["networks"]

    def lookup(self, name: Name) -> Claims:
        """The claims on a name, in the order in which they decide; () when no list has it."""
        found = self.finder.find(name)
        if found < 0:
            return ()
        slot, start = found >> 8, found & 255
        return self._claims_in(4 * slot, name[start:], start > 0)

    def passes_below(self, name: Name, board: Switchboard) -> bool:
        """Whether a name below this one may pass: an exception does, or all names that are not listed themselves."""
        if name in self.cuts:
            return True
        found = self.finder.find(name)
        if found < 0:
            return True
        slot, start = found >> 8, found & 255
        return board.choose(self._claims_in(4 * slot, name[start:], below=True))[0] is not Action.BLOCK

    def _claims_in(self, at: int, listed: bytes, below: bool) -> Claims:
        """The claims of the slot at this word: on its name `listed`, or on a name below."""
        line, kind = self._slots[at + 2], self._slots[at + 3] >> 16
        if kind == ELABORATE:
            return self._at_place(self._pairs[2 * line + below])
        if kind == EXACT and below:
            return ()
        source = self._slots[at + 3] & 0xFFFF
        return (Decision(self.class_of[source], source, line, SIGNS[kind == EXACT] + names.to_text(listed)),)

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

    def listed(self) -> Iterator[tuple[Name, Claims, Claims]]:
        """Every listed name with the claims on itself and on the names below it."""
        for at in range(0, len(self._slots), 4):
            if begin := self._slots[at + 1]:
                name = Name(bytes(self._blob[begin - 1 : names.end(self._blob, begin - 1)]))
                yield name, self._claims_in(at, name, below=False), self._claims_in(at, name, below=True)

    def lookup_address(self, packed: bytes) -> Claims:
        """The claims on an address of 4 or 16 octets in network order. An IPv6 form of an IPv4 address counts as both."""
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

    def classed(self, family: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """The same with the numbers of the claiming classes alone: an object less for each of a million."""
        words, classes, at = self._claims, self._decisions, _CLASS.unpack_from
        for first, last, place in self._ranges[family]:
            count = words[place]
            if count == 1:  # nearly always
                yield first, last, at(classes, 16 * words[place + 1])
            else:
                yield first, last, tuple(at(classes, 16 * words[place + 1 + n])[0] for n in range(count))


class Finder:
    """The names of an image. Its compiled twin is `native.image.Finder`."""

    def __init__(self, slots: memoryview, blob: memoryview, homes: int) -> None:
        self._slots, self._blob, self._homes = slots, blob, homes

    def find(self, name: Name) -> int:
        """256 times the slot of the first listed suffix, plus the offset in the name at which it begins; -1 without one."""
        slots, blob, homes = self._slots, self._blob, self._homes
        key: bytes = name
        start = 0
        while True:
            hash_ = crc32(key)
            at = 4 * (hash_ * homes >> 32)
            while (begin := slots[at + 1]) and (there := slots[at]) <= hash_:
                # a name ends in a zero octet, so two names are equal when one begins with the other
                if there == hash_ and blob[begin - 1 : begin - 1 + len(key)] == key:
                    return at << 6 | start
                at += 4
            step = name[start]
            if not step:
                return -1
            start += 1 + step
            key = name[start:]

    def unclaimed(self, qname: Name, leads: Iterable[Lead], address: Callable[[bytes], Claims]) -> bool:
        """Whether no entry claims the name, nor an owner, target or address of the leads. `address` looks one address up."""
        if self.find(qname) >= 0:
            return False
        for owner, targets, packed in leads:
            if (owner != qname and self.find(owner) >= 0) or any(map(address, packed)):
                return False
            if any(self.find(target) >= 0 for target in set(targets)):  # one may be named a thousand times
                return False
        return True


class _Ranges:
    """The listed ranges of one family, `width` octets an address: disjoint and sorted."""

    def __init__(self, view: memoryview, start: int, end: int, width: int) -> None:
        count = (end - start) // (2 * width + 4)
        data = bytes(view[start : start + count * 2 * width])
        if width == 4:
            numbers = memoryview(data).cast("I")
            self.firsts: Sequence[int] = numbers[:count]
            self.lasts: Sequence[int] = numbers[count:]
        else:
            words = [int.from_bytes(data[i : i + 16]) for i in range(0, len(data), 16)]
            self.firsts, self.lasts = words[:count], words[count:]
        tail = start + count * 2 * width
        self.claims = view[tail : tail + 4 * count].cast("I")

    def find(self, packed: bytes) -> int:
        """Where in `claims` those on an address begin; 0, the empty list, when no range has it."""
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


def _verify(view: memoryview, trusted: bool) -> dict[str, int]:
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
    if not trusted and _digest(numbers, view) != digest:
        raise ImageError("the image is damaged: its checksum does not match")
    if not _fits(at):
        raise ImageError("the image contradicts itself: its sections do not fit their counts")
    return at


def _digest(numbers: Sequence[int], view: memoryview) -> bytes:
    found = hashlib.sha256(_NUMBERS.pack(*numbers))
    found.update(view[_HEADER.size :])  # in place: it may be a hundred megabytes
    return found.digest()


def _fits(at: dict[str, int]) -> bool:
    places = [at[field] for field in _FIELDS[:_SECTIONS]]
    slots = (at["blob"] - at["slots"]) // 16
    return (
        places[0] == _HEADER.size
        and places == sorted(places)
        and not any(place % 8 for place in places)
        and (at["blob"] - at["slots"]) % 16 == 0
        and at["names"] < slots
        and _homes(at["names"]) == at["homes"] <= slots
        and 8 * at["elaborate"] == at["slots"] - at["pairs"]
        and at["networks"] == (at["v6"] - at["v4"]) // 12 + (at["end"] - at["v6"]) // 36
    )
