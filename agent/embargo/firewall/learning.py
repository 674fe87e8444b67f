"""Learning of addresses: which addresses names were answered with, and which of them are blocked because of it.

An app that brings its addresses along asks for no name. So the addresses behind a blocked name are blocked in the firewall
too. The danger is the neighbour: one address can serve several names, and those that nobody blocks must stay reachable. This
module decides. It has no clock (`now` is in seconds of a monotonic clock) and no kernel.

    client     asks for pay.example, which is blocked; the reply, at once, is the block
    resolver   looks the name up in the background, and again when that answer ends: pay.example leads to A and B
       │
       ▼
    guardian   0  its policy blocks pay.example too
               1  marks A and B: a resolver that is about to answer with a marked address asks the guardian first
               2  asks every resolver to report the answers that it has gathered and not reported yet
               3  Book.leads: an unblocked name, shop.example, was answered with A, so A is spared; B is learnt
               4  puts B into a kernel set, with a timeout, and into the memory on disk; takes the mark off A
               5  judges open flows again: one to B is refused at its next packet

    client     asks for news.example, which nobody blocks
    resolver   is answered with B, which is marked: it holds the reply and asks to free B
       ▼
    guardian   Book.answered: B is free; takes it out of the set, and confirms
    resolver   sends the reply

**Who may hold a reply, and why.** Only a resolver, only a reply with a marked address, until the guardian confirms. Else the
client would connect to an address that is still refused. Nearly all replies have no marked address and wait for nothing. Marks
are hashed, so a reply may be held for an address that only shares a bit. If the guardian does not confirm, the reply is sent
after a second. Step 2 takes 0.3 seconds at most, so that a resolver that hangs cannot hold up a block.

**Lifetimes.** A learnt address is blocked for the TTL of the answer (MIN_TTL_SECONDS at least) and BLOCK_GRACE_SECONDS more,
since apps use addresses after their TTL. That an unblocked name uses an address counts for the TTL and IN_USE_SECONDS more:
caches and flows of clients outlive answers, and to spare one address too many is the smaller harm.

**Never learnt** are guarded addresses (special ones, this machine's, its networks', next hops, upstreams; and those in lists,
about which a list decides), and what is behind names that exist only to be asked for (UNLEARNT).

**Limits.** MAX_ADDRESSES are remembered. When one in use must be forgotten to make room, not all neighbours are known any more:
nothing new is learnt for GATHERING_SECONDS, as after a start without a memory. MAX_LEARNT are blocked at a time; more stay open
and are counted as "overflow". An address that a device brings along is unknown until some client asks for the name. The owner
of a blocked name can have its addresses spared, by an unblocked name with the same addresses.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from embargo import names
from embargo.lists.policy import BYPASS, Class, Network
from embargo.names import Name

IN_USE_SECONDS = 86_400.0  # after its answer ended an unblocked name's address is in use for so long
BLOCK_GRACE_SECONDS = 300  # an address stays blocked for so long after the answer that led there
MIN_TTL_SECONDS, MAX_TTL_SECONDS = 60, 86_400  # what is made of an answer's TTL
GATHERING_SECONDS = 600.0  # without blocking, after a start that remembers nothing
MAX_ADDRESSES = 65_536  # remembered, some 25 MiB
MAX_LEARNT = 16_384  # of them blocked
MAX_NAMES = 4  # remembered of an address, the latest
MAX_SPARED = 64  # addresses spared lately, to be shown
MAX_PATH, MAX_LINE = 4096, 1 << 31  # of a list, in a reason

#: these answer every client alike, or exist to be asked: what is behind them is no address of an app
UNLEARNT = frozenset({Class(BYPASS, "canary"), Class(BYPASS, "relay")})


class Reason(NamedTuple):
    """The blocked name that led to an address, and the entry that blocks it."""

    name: Name
    class_: Class
    list: str
    line: int
    rule: str


def reason(name: bytes, class_: tuple[Any, Any], path: Any, line: Any, rule: Any) -> Reason:
    """A reason from another process or from disk. ValueError or TypeError for what no list can contain."""
    app, function = class_
    if not all(isinstance(text, str) for text in (app, function, path, rule)) or not isinstance(line, int):
        raise TypeError("a reason is made of texts and a line")
    if not names.is_name(name) or len(path) > MAX_PATH or not 0 <= line < MAX_LINE:
        raise ValueError("a name, path or line that no list can contain")
    names.from_text(rule.lstrip("="))  # ValueError; the address is judged again by this name when the policy changes
    return Reason(Name(name), Class(app, function), path, line, rule)


def spells(name: Name, address: bytes) -> bool:
    """Whether a name spells an address, forwards or backwards, as in 203-0-113-20.nip.example.

    Public services answer such a name for any address, so anybody can have one: it is no neighbour.
    """
    text = names.to_text(name)
    if address.hex() in text:
        return True
    if len(address) == 4:
        numbers = f".{_NO_DIGITS.sub('.', text)}."
        octets = [str(octet) for octet in address]
        return any(f".{'.'.join(each)}." in numbers for each in (octets, octets[::-1]))
    shown = ipaddress.IPv6Address(address)
    return any(each.replace(":", "-") in text for each in (shown.compressed, shown.exploded))


_NO_DIGITS = re.compile("[^0-9]+")


class Spared(NamedTuple):
    """An address that a blocked name led to and that stays open, since the unblocked name `neighbour` was answered with it."""

    address: bytes
    blocked: Name
    neighbour: Name


class _Address:
    """What is remembered of an address. Times are of the clock of `now`."""

    __slots__ = ("names", "neighbour", "reason", "until", "used_until")

    def __init__(self) -> None:
        self.names: tuple[Name, ...] = ()  # the latest last
        self.neighbour = names.ROOT  # the unblocked name that was answered with it last
        self.used_until = 0.0  # by that name
        self.reason: Reason | None = None  # why it is blocked
        self.until = 0.0  # it is blocked


class Book:
    """What is remembered of addresses. It takes `now`, reads no clock, and forgets only when it needs room."""

    def __init__(self, proving: float = 0.0) -> None:
        self._addresses: dict[bytes, _Address] = {}  # the longest untouched first
        self._learnt: dict[bytes, None] = {}  # the blocked ones
        self._spared: dict[bytes, Spared] = {}  # the latest last
        #: tells addresses that are never blocked, whatever name leads there
        self.guarded: Callable[[bytes], bool] = lambda address: False
        self._is_blocked: Callable[[Name], bool] = lambda name: False
        self.proving = proving  # until when nothing is blocked
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def learnt(self) -> int:
        """How many addresses are blocked."""
        return len(self._learnt)

    @property
    def spared(self) -> list[Spared]:
        """Addresses that blocked names led to and that stay open because of other names, the latest last."""
        return list(self._spared.values())

    def answered(self, name: Name, addresses: Iterable[bytes], ttl: int, now: float) -> list[bytes]:
        """An unblocked name was answered with these addresses. Those of them that were blocked, and are free from now on."""
        freed = []
        for address in addresses:
            entry = self._touch(address, name, now)
            if self._is_blocked(name) or spells(name, address):  # by a policy that the resolver did not have yet
                continue
            entry.neighbour = name
            entry.used_until = max(entry.used_until, now + max(ttl, MIN_TTL_SECONDS) + IN_USE_SECONDS)
            if entry.reason is not None:
                self._spare(address, entry.reason.name, name)
                self._unlearn(address, entry)
                self.counters["freed"] += 1
                freed.append(address)
        return freed

    def leads(self, reason: Reason, addresses: Iterable[bytes], ttl: int, now: float) -> list[tuple[bytes, int]]:
        """A blocked name leads to these addresses. (address, seconds) of those that are blocked from now on."""
        seconds = max(ttl, MIN_TTL_SECONDS) + BLOCK_GRACE_SECONDS
        blocked = []
        for address in addresses:
            entry = self._touch(address, reason.name, now)
            if self.guarded(address):
                self.counters["guarded"] += 1
            elif now < entry.used_until:
                self.counters["shared"] += 1
                self._spare(address, reason.name, entry.neighbour)
            elif entry.reason is None and now < self.proving:
                self.counters["noted"] += 1
            elif entry.reason is None and len(self._learnt) >= MAX_LEARNT:
                self.counters["overflow"] += 1
            else:
                self.counters["learnt"] += entry.reason is None
                entry.reason, entry.until = reason, max(entry.until, now + seconds)
                self._learnt[address] = None
                blocked.append((address, round(entry.until - now)))
        return blocked

    def judge(self, judge: Callable[[Reason], Reason | None], is_blocked: Callable[[Name], bool], now: float) -> None:
        """Another policy is in force: judge every remembered address by it.

        `judge` gives today's reason for an address that was blocked for this one, None when it is not blocked any more;
        `is_blocked` tells names that are blocked or audited, which are no neighbours.
        """
        self._is_blocked = is_blocked
        self._review_neighbours(now)
        for address, entry, before in self._blocked(now):
            reason = None if self.guarded(address) else judge(before)
            if reason is None:
                self._unlearn(address, entry)
            else:
                entry.reason = reason

    def _review_neighbours(self, now: float) -> None:
        """Take another unblocked name for the neighbour where that one is blocked now, or none."""
        used = [entry for entry in self._addresses.values() if now < entry.used_until]
        blocked = {name: self._is_blocked(name) for name in {entry.neighbour for entry in used}}
        for entry in used:
            if blocked[entry.neighbour]:
                others = [name for name in entry.names if not self._is_blocked(name)]
                if others:
                    entry.neighbour = others[-1]
                elif len(entry.names) < MAX_NAMES:  # else there may be others that are not remembered
                    entry.used_until = 0.0

    def blocked(self, now: float) -> Iterator[tuple[bytes, Class, int]]:
        """(address, class, seconds left) of everything that is blocked because of a name."""
        for address, entry, reason in self._blocked(now):
            yield address, reason.class_, max(round(entry.until - now), 1)

    def lasting(self, now: float) -> int:
        """How many addresses are blocked for longer than this moment."""
        return sum(now < self._addresses[address].until for address in self._learnt)

    def reason(self, address: bytes, now: float) -> Reason | None:
        """Why an address is blocked; None when it is not blocked because of a name."""
        entry = self._addresses.get(address)
        return entry.reason if entry is not None and now < entry.until else None

    def names(self, address: bytes) -> tuple[Name, ...]:
        """The names that were answered with an address lately, blocked or not, the latest last."""
        entry = self._addresses.get(address)
        return entry.names if entry is not None else ()

    def shared(self, address: bytes) -> Spared | None:
        """Which unblocked name keeps an address open that a blocked name led to; None when none does."""
        return self._spared.get(address)

    def _blocked(self, now: float) -> list[tuple[bytes, _Address, Reason]]:
        """The blocked addresses; one whose time is over is free from here on."""
        blocked = []
        for address in list(self._learnt):
            entry = self._addresses[address]
            if entry.reason is not None and now < entry.until:
                blocked.append((address, entry, entry.reason))
            else:
                self._unlearn(address, entry)
        return blocked

    def _touch(self, address: bytes, name: Name, now: float) -> _Address:
        """The entry of an address, made the latest, with this name as its latest."""
        entry = self._addresses.pop(address, None)
        if entry is None:
            entry = _Address()
            if len(self._addresses) >= MAX_ADDRESSES:
                self._make_room(now)
        self._addresses[address] = entry
        if not entry.names or entry.names[-1] != name:
            entry.names = (*(other for other in entry.names if other != name), name)[-MAX_NAMES:]
        return entry

    def _make_room(self, now: float) -> None:
        """Forget the address that was untouched for longest. A blocked one is kept: it must be found here to be freed.

        After one in use was forgotten, not all neighbours are known any more: no further address is blocked for a while, as
        after a start without a memory.
        """
        while (address := next(iter(self._addresses))) in self._learnt:
            self._addresses[address] = self._addresses.pop(address)
        entry = self._addresses.pop(address)
        if now < entry.used_until:
            self.counters["forgotten"] += 1
            self.proving = max(self.proving, now + GATHERING_SECONDS)

    def _unlearn(self, address: bytes, entry: _Address) -> None:
        entry.reason, entry.until = None, 0.0
        del self._learnt[address]

    def _spare(self, address: bytes, blocked: Name, neighbour: Name) -> None:
        self._spared.pop(address, None)
        if len(self._spared) >= MAX_SPARED:
            del self._spared[next(iter(self._spared))]
        self._spared[address] = Spared(address, blocked, neighbour)

    # ── across a restart ─────────────────────────────────────────────────────────────────────────────────────────────

    def saved(self, now: float) -> Iterator[dict[str, Any]]:
        """What is worth remembering, as JSON values, one an address, with times as seconds from now."""
        return (row for part in self.saved_in_parts(now, len(self._addresses) or 1) for row in part)

    def saved_in_parts(self, now: float, size: int) -> Iterator[list[dict[str, Any]]]:
        """The same of `size` addresses at a time; the book may change in between."""
        addresses = list(self._addresses)
        for start in range(0, len(addresses), size):
            yield [row for row in self.rows(addresses[start : start + size], now) if "used" in row or "until" in row]

    def rows(self, addresses: Iterable[bytes], now: float) -> Iterator[dict[str, Any]]:
        """The same of these addresses, also where there is nothing but names."""
        for address in addresses:
            entry = self._addresses.get(address)
            if entry is None:
                continue
            row: dict[str, Any] = {"address": address.hex(), "names": [name.hex() for name in entry.names]}
            if now < entry.used_until:
                row |= {"used": round(entry.used_until - now), "neighbour": entry.neighbour.hex()}
            if entry.reason is not None and now < entry.until:
                name, class_, path, line, rule = entry.reason
                row |= {"until": round(entry.until - now), "reason": [name.hex(), *class_, path, line, rule]}
            yield row

    def restore(self, rows: Iterable[dict[str, Any]], now: float) -> None:
        """Take over what was saved. ValueError, KeyError or TypeError for what was not."""
        for row in rows:
            if len(self._addresses) >= MAX_ADDRESSES:
                return
            address, entry = bytes.fromhex(row["address"]), _Address()
            if len(address) not in (4, 16):
                raise ValueError(f'"{row["address"]}" is not an address')
            entry.names = tuple(map(_name, row["names"][-MAX_NAMES:]))
            if row.get("used", 0) > 0:
                entry.used_until, entry.neighbour = now + min(row["used"], 2 * IN_USE_SECONDS), _name(row["neighbour"])
            if row.get("until", 0) > 0 and len(self._learnt) < MAX_LEARNT:
                name, app, function, path, line, rule = row["reason"]
                entry.until = now + min(row["until"], IN_USE_SECONDS)
                entry.reason = reason(bytes.fromhex(name), (app, function), path, line, rule)
                self._learnt[address] = None
            self._addresses[address] = entry


def _name(digits: str) -> Name:
    octets = bytes.fromhex(digits)
    if not names.is_name(octets):
        raise ValueError(f'"{digits}" is not a name')
    return Name(octets)


def guard(networks: Iterable[Network]) -> Callable[[bytes], bool]:
    """A function that tells the addresses in these networks."""
    ranges = list(networks)

    def guarded(address: bytes) -> bool:
        family, number = 4 if len(address) == 4 else 6, int.from_bytes(address)
        return any(f == family and first <= number <= last for f, first, last in ranges)

    return guarded
