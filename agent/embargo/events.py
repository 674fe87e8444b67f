"""What happened, as records and as JSON lines (embargo-events(5)).

Equal attempts are folded: the first of its kind is a record at once, all that follow within a window are one record with
`count`, `first` and the time of the last. So a flood costs a dictionary entry, and no count is lost.
"""

import json
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice, takewhile
from json.encoder import encode_basestring_ascii
from typing import Any

from embargo import accelerator

SCHEMA = 1
WINDOW = 10.0  # seconds
MAX_KINDS = 16_384  # kinds of attempt folded at once, about 9 MiB; attempts of further kinds are records of their own

Event = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps builds an encoder per call


@lru_cache(maxsize=16)  # the attempts of a batch have one time
def timestamp(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339, UTC, microseconds."""
    whole, micro = divmod(round(seconds * 1e6), 1_000_000)  # a float tells quarters of a microsecond apart until 2255
    return f"{_second(whole)}.{micro:06d}Z"


@lru_cache(maxsize=16)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def quote(text: str) -> str:
    """A JSON string in ASCII, without a raw control character."""
    return encode_basestring_ascii(text)


def fragment(event: Event) -> str:
    """The members of an event as JSON, without the braces: what a Folder keeps of a kind."""
    return _encode(event)[1:-1]


def line(members: str, wall: float) -> bytes:
    """One line of the log: the schema, the time, the members."""
    return f'{{"schema":{SCHEMA},"ts":"{timestamp(wall)}",{members}}}\n'.encode()


def encode(event: Event, wall: float) -> bytes:
    """An event that stands alone, as one line."""
    return line(fragment(event), wall)


class Kind:
    """Equal attempts within a window. The compiled twin is `_fastpath.Kind`."""

    __slots__ = ("count", "first", "last", "members", "open", "opened")

    def __init__(self, members: str, opened: float) -> None:
        self.members = members
        self.opened = opened
        self.open = True  # a folder holds it
        self.count = 0  # attempts since the last record
        self.first = self.last = 0.0

    def again(self, wall: float) -> None:
        """One more."""
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall


_kind: type[Kind] = accelerator.fast.Kind if accelerator.fast else Kind


def _record(kind: Kind) -> bytes:
    return line(f'{kind.members},"count":{kind.count},"first":"{timestamp(kind.first)}"', kind.last)


class Folder:
    """Folds equal attempts. `now` is monotonic and decides when, `wall` is seconds since 1970 and is written down."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self.kinds: dict[Hashable, Kind] = {}  # the compiled fast path looks into it too
        self.noted = 0  # attempts, all in all

    def note(self, key: Hashable, make: Callable[[], str], now: float, wall: float) -> bytes | None:
        """Count one attempt; the line to write when it is the first of its kind. `make` gives the kind's members."""
        if self.again(key, wall) is not None:
            return None
        return self.open(key, make(), now, wall)[0]

    def again(self, key: Hashable, wall: float) -> Kind | None:
        """Count one attempt, unless it is the first of its kind."""
        kind = self.kinds.get(key)
        if kind is not None:
            self.noted += 1
            kind.again(wall)
        return kind

    def open(self, key: Hashable, members: str, now: float, wall: float) -> tuple[bytes, Kind | None]:
        """Count the first attempt of a kind: its line, and what further ones are counted in, unless too many are held."""
        self.noted += 1
        kind = _kind(members, now) if len(self.kinds) < MAX_KINDS else None
        if kind is not None:
            self.kinds[key] = kind
        return line(f'{members},"count":1', wall), kind

    def due(self, now: float, limit: int = MAX_KINDS) -> list[tuple[bytes, int]]:
        """The lines, each with its count, of the kinds whose window has passed, `limit` at most. A quiet one is forgotten."""
        records = []
        last = now - self._window  # kinds stand in the order of their opening
        for key, kind in list(islice(takewhile(lambda item: item[1].opened <= last, self.kinds.items()), limit)):
            del self.kinds[key]
            if kind.count:
                records.append((_record(kind), kind.count))
                kind.count, kind.opened = 0, now
                self.kinds[key] = kind
            else:
                kind.open = False
        return records

    def flush(self) -> list[tuple[bytes, int]]:
        """All that is held, at the end."""
        records = [(_record(kind), kind.count) for kind in self.kinds.values() if kind.count]
        for kind in self.kinds.values():
            kind.open = False
        self.kinds.clear()
        return records
