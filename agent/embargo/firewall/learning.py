"""Which addresses were answered for which names, and which of them are blocked because of it.

An app that knows an address needs no name. So the addresses behind a blocked name are blocked too, for the time that the
name's own answer says and a grace; unless a name that nobody blocks was answered with one of them lately, for then others
live there too. Such a name that comes later frees the address before its answer is sent. Without a memory of what was
answered before (a first start), addresses are noted and none is blocked until one has been gathered.

Times are seconds of a monotonic clock.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from embargo import names
from embargo.lists.policy import BYPASS, Class, Network
from embargo.names import Name

RECENT = 86_400.0  # seconds after its answer ended for which an unblocked name's address is known to be in use
GRACE = 300  # seconds for which an address stays blocked after the answer that led there
SHORTEST = 60  # seconds, also for an answer with TTL 0
PROVING = 600.0  # seconds without blocking after a start that remembers nothing
MAX_ADDRESSES = 65_536  # remembered, some 25 MiB
MAX_LEARNT = 16_384  # of them blocked
MAX_NAMES = 4  # remembered of an address, the latest
MAX_SHARED = 64  # addresses spared lately, to be shown
LONGEST = 86_400  # seconds that are believed of an answer
MAX_PATH, MAX_LINE = 4096, 1 << 31

#: these answer for whoever asks, or exist to be asked: what is behind them is no address of an app
UNLEARNT = frozenset({Class(BYPASS, "canary"), Class(BYPASS, "relay")})


class Reason(NamedTuple):
    """The blocked name that led to an address, and the entry that blocks it."""

    name: Name
    class_: Class
    list: str
    line: int
    rule: str


def reason(name: bytes, class_: tuple[Any, Any], path: Any, line: Any, rule: Any) -> Reason:
    """A reason told by another process or read from disk. ValueError or TypeError for what no list can have said."""
    app, function = class_
    if not all(isinstance(text, str) for text in (app, function, path, rule)) or not isinstance(line, int):
        raise TypeError("a reason is made of texts and a line")
    if not names.is_name(name) or len(path) > MAX_PATH or not 0 <= line < MAX_LINE:
        raise ValueError("it is no reason")
    names.from_text(rule.lstrip("="))  # by which it is judged again when the policy changes
    return Reason(Name(name), Class(app, function), path, line, rule)


class Spared(NamedTuple):
    """An address that a blocked name led to and that stays open, and who else lives there."""

    address: bytes
    blocked: Name
    neighbour: Name


class _Known:
    __slots__ = ("names", "neighbour", "reason", "until", "used")

    def __init__(self) -> None:
        self.names: tuple[Name, ...] = ()  # the latest last
        self.neighbour = names.ROOT  # the unblocked name that was answered with it last
        self.used = 0.0  # until when that counts
        self.reason: Reason | None = None
        self.until = 0.0  # until when it is blocked


class Book:
    """What was answered. `guarded`: addresses that are never blocked, whoever leads there."""

    def __init__(self, proving: float = 0.0) -> None:
        self._known: dict[bytes, _Known] = {}  # the longest untouched first
        self._learnt: dict[bytes, None] = {}
        self._spared: dict[bytes, Spared] = {}
        self.guarded: Callable[[bytes], bool] = lambda address: False
        self._is_blocked: Callable[[Name], bool] = lambda name: False
        self.proving = proving  # until when nothing is blocked
        self.counters: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def learnt(self) -> int:
        return len(self._learnt)

    @property
    def spared(self) -> list[Spared]:
        """Addresses that blocked names led to and that stay open because of others, the latest last."""
        return list(self._spared.values())

    def answered(self, name: Name, addresses: Iterable[bytes], ttl: int, now: float) -> list[bytes]:
        """An unblocked name was answered with these. Those that were blocked because of another, and are free from now on."""
        freed = []
        for address in addresses:
            known = self._touch(address, name, now)
            if self._is_blocked(name):  # since it was answered: whoever told us did not know yet
                continue
            known.neighbour, known.used = name, max(known.used, now + max(ttl, SHORTEST) + RECENT)
            if known.reason is not None:
                self._spare(address, known.reason.name, name)
                self._unlearn(address, known)
                self.counters["freed"] += 1
                freed.append(address)
        return freed

    def leads(self, reason: Reason, addresses: Iterable[bytes], ttl: int, now: float) -> list[tuple[bytes, int]]:
        """A blocked name leads to these. Those to be blocked from now on, each for how many seconds."""
        seconds = max(ttl, SHORTEST) + GRACE
        found = []
        for address in addresses:
            known = self._touch(address, reason.name, now)
            if self.guarded(address):
                self.counters["guarded"] += 1
            elif now < known.used:
                self.counters["shared"] += 1
                self._spare(address, reason.name, known.neighbour)
            elif known.reason is None and now < self.proving:
                self.counters["noted"] += 1
            elif known.reason is None and len(self._learnt) >= MAX_LEARNT:
                self.counters["overflow"] += 1
            else:
                self.counters["learnt"] += known.reason is None
                known.reason, known.until = reason, max(known.until, now + seconds)
                self._learnt[address] = None
                found.append((address, round(known.until - now)))
        return found

    def judge(self, judge: Callable[[Reason], Reason | None], is_blocked: Callable[[Name], bool], now: float) -> None:
        """The policy is another: what it does not block any more is free, every reason is today's, and who is blocked is no
        neighbour any more."""
        self._is_blocked = is_blocked
        self._review(is_blocked, now)
        for address, known in self._blocked(now):
            assert known.reason is not None
            reason = None if self.guarded(address) else judge(known.reason)
            if reason is None:
                self._unlearn(address, known)
            else:
                known.reason = reason

    def _review(self, is_blocked: Callable[[Name], bool], now: float) -> None:
        blocked = {name: is_blocked(name) for name in {known.neighbour for known in self._known.values() if now < known.used}}
        for known in self._known.values():
            if now < known.used and blocked[known.neighbour]:
                others = [name for name in known.names if not is_blocked(name)]
                if others:
                    known.neighbour = others[-1]
                elif len(known.names) < MAX_NAMES:  # else there may be others that are not remembered
                    known.used = 0.0

    def blocked(self, now: float) -> Iterator[tuple[bytes, Class, int]]:
        """All that is blocked: address, class, seconds left."""
        for address, known in self._blocked(now):
            assert known.reason is not None
            yield address, known.reason.class_, max(round(known.until - now), 1)

    def lasting(self, now: float) -> int:
        """How many addresses are blocked for longer than this moment."""
        return sum(now < self._known[address].until for address in self._learnt)

    def reason(self, address: bytes, now: float) -> Reason | None:
        """Why an address is blocked; None when it is not because of a name."""
        known = self._known.get(address)
        return known.reason if known is not None and now < known.until else None

    def names(self, address: bytes) -> tuple[Name, ...]:
        """The names that were answered with an address lately, blocked or not, the latest last."""
        known = self._known.get(address)
        return known.names if known is not None else ()

    def shared(self, address: bytes) -> Spared | None:
        """Who else lives at an address that a blocked name led to."""
        return self._spared.get(address)

    def _blocked(self, now: float) -> list[tuple[bytes, _Known]]:
        """What is blocked; what was and has had its time is forgotten."""
        found = []
        for address in list(self._learnt):
            known = self._known[address]
            if now < known.until:
                found.append((address, known))
            else:
                self._unlearn(address, known)
        return found

    def _touch(self, address: bytes, name: Name, now: float) -> _Known:
        known = self._known.pop(address, None)
        if known is None:
            known = _Known()
            if len(self._known) >= MAX_ADDRESSES:
                self._make_room(now)
        self._known[address] = known
        if not known.names or known.names[-1] != name:
            known.names = (*(each for each in known.names if each != name), name)[-MAX_NAMES:]
        return known

    def _make_room(self, now: float) -> None:
        """Forget the address that was untouched for longest and is not blocked: of one that is we must know, to free it.

        If it was in use, we do not know all neighbours any more. Then no further address is blocked for a while, as after a
        start without a memory.
        """
        while (address := next(iter(self._known))) in self._learnt:
            self._known[address] = self._known.pop(address)
        known = self._known.pop(address)
        if now < known.used:
            self.counters["forgotten"] += 1
            self.proving = max(self.proving, now + PROVING)

    def _unlearn(self, address: bytes, known: _Known) -> None:
        known.reason, known.until = None, 0.0
        del self._learnt[address]

    def _spare(self, address: bytes, blocked: Name, neighbour: Name) -> None:
        self._spared.pop(address, None)
        if len(self._spared) >= MAX_SHARED:
            del self._spared[next(iter(self._spared))]
        self._spared[address] = Spared(address, blocked, neighbour)

    # ── across a restart ─────────────────────────────────────────────────────────────────────────────────────────────

    def saved(self, now: float) -> Iterator[dict[str, Any]]:
        """What is worth to be remembered, as JSON values with times as seconds from now."""
        return (row for some in self.saved_in_parts(now, len(self._known) or 1) for row in some)

    def saved_in_parts(self, now: float, size: int) -> Iterator[list[dict[str, Any]]]:
        """The same of so many addresses at a time; in between, others may be answered."""
        known = list(self._known)
        for start in range(0, len(known), size):
            yield [row for row in self.rows(known[start : start + size], now) if len(row) > 2]

    def rows(self, addresses: Iterable[bytes], now: float) -> Iterator[dict[str, Any]]:
        """The same of these addresses."""
        for address in addresses:
            known = self._known.get(address)
            if known is None:
                continue
            row: dict[str, Any] = {"address": address.hex(), "names": [name.hex() for name in known.names]}
            if now < known.used:
                row |= {"used": round(known.used - now), "neighbour": known.neighbour.hex()}
            if known.reason is not None and now < known.until:
                name, class_, path, line, rule = known.reason
                row |= {"until": round(known.until - now), "reason": [name.hex(), *class_, path, line, rule]}
            yield row

    def restore(self, rows: Iterable[dict[str, Any]], now: float) -> None:
        """What was saved. Raises ValueError, KeyError or TypeError for what was not."""
        for row in rows:
            if len(self._known) >= MAX_ADDRESSES:
                return
            address, known = bytes.fromhex(row["address"]), _Known()
            if len(address) not in (4, 16):
                raise ValueError(f'"{row["address"]}" is no address')
            known.names = tuple(map(_name, row["names"][-MAX_NAMES:]))
            if row.get("used", 0) > 0:
                known.used, known.neighbour = now + min(row["used"], 2 * RECENT), _name(row["neighbour"])
            if row.get("until", 0) > 0 and len(self._learnt) < MAX_LEARNT:
                name, app, function, path, line, rule = row["reason"]
                known.until = now + min(row["until"], RECENT)
                known.reason = reason(bytes.fromhex(name), (app, function), path, line, rule)
                self._learnt[address] = None
            self._known[address] = known


def _name(digits: str) -> Name:
    octets = bytes.fromhex(digits)
    if not names.is_name(octets):
        raise ValueError(f'"{digits}" is no name')
    return Name(octets)


def guard(networks: Iterable[Network]) -> Callable[[bytes], bool]:
    """Tells the addresses in these networks."""
    ranges = list(networks)

    def guarded(address: bytes) -> bool:
        family, number = 4 if len(address) == 4 else 6, int.from_bytes(address)
        return any(f == family and first <= number <= last for f, first, last in ranges)

    return guarded
