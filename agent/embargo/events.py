"""Events: their schema, their encoding as JSON lines (embargo-events(5)), and the folding of equal attempts.

The first attempt of a kind is written immediately; all further ones within a window become one record with `count`, `first` and
the time of the last. So a flood of equal attempts costs one dictionary entry, and none is left uncounted.
"""

import json
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import islice, takewhile
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from embargo import accelerator, records

SCHEMA = 1  # incremented when a key is removed or changes its meaning
WINDOW = 10.0  # seconds
MAX_KINDS = 16_384  # kinds of attempt that are folded at a time, about 9 MiB; attempts of further kinds are written one by one

Event = dict[str, Any]


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Field(NamedTuple):
    """A key of an event."""

    key: str
    type: str  # in JSON: text, number, flag (false only for `ok`; otherwise absent), list (of texts)
    events: str  # events that may have it, separated by spaces; empty: all
    meaning: str  # for docs/events.md

    def belongs_to(self, event: str) -> bool:
        """Whether an event of this name may have the key."""
        return not self.events or event in self.events.split()


#: all keys, in their order in a line. docs/events.md is generated from it; both writers of `dns` events use it
FIELDS = (
    Field("schema", "number", "", f"{SCHEMA}"),
    Field("ts", "text", "", "RFC 3339, UTC, microseconds"),
    Field("event", "text", "", "which event: `dns`, `drop`, `reload`, `policy`, `firewall`, `upstream`, `start`, `stop`"),
    Field("client", "text", "dns drop policy", "address of the client; of a `policy` event, the one client of a pause"),
    Field("client_mac", "text", "drop", "link address of the client, where the kernel knows it"),
    Field("client_name", "text", "drop", "what a hosts file calls the client, by any address of the same machine"),
    Field("qname", "text", "dns", "name in presentation format (RFC 1035 escapes); absent with `[log] names = \"none\"`"),
    Field("qtype", "text", "dns", "type mnemonic"),
    Field("dst", "text", "drop", "address of the listed side of the flow"),
    Field("dport", "number", "drop", "port of the listed side"),
    Field("proto", "text", "drop", "`tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or a protocol number"),
    Field("names", "list", "drop", "names that were answered with that address in the last days, the latest first"),
    Field("direct", "flag", "drop", "true when there are no such names"),
    Field("action", "text", "dns drop", "`nxdomain`, `nodata`, `null`, `refused`, `address`, `reject`, `pass`"),
    Field("mode", "text", "dns drop", "`block` or `audit`; absent from queries that no entry claims"),
    Field("app", "text", "dns drop", "app of the entry that decided"),
    Field("function", "text", "dns drop", "function of that app"),
    Field("list", "text", "dns drop",
        "file of the entry; a drop by port (DNS over TLS, over QUIC) or by content (HTTPDNS in clear text) has none"),
    Field("line", "number", "dns drop", "line of the entry in that file"),
    Field("rule", "text", "dns drop", "the entry itself"),
    Field("learnt", "flag", "drop", "true when the address is in no list: the entry blocks a name that led to it"),
    Field("generation", "number", "dns drop reload start stop", "compiled policy that decided, or that took effect"),
    Field("count", "number", "dns drop",
        "equal attempts merged into this record: the first is written at once, the rest in one record per 10 s"),
    Field("first", "text", "dns drop", "time of the first attempt in a record of several; `ts` is the time of the last"),
    Field("unlogged", "flag", "drop",
        "true if `count` includes packets that were only counted (over 1,000 a second of one app and function); with these"
        " records, the counts of the log are the kernel's"),
    Field("lost", "number", "",
        "events before this one that could not be written, or that a killed process had not handed over"),
    Field("ok", "flag", "reload", "whether the reload succeeded"),
    Field("why", "text", "reload policy", "what asked for the reload; why a pause ended by itself"),
    Field("errors", "list", "reload", "what refused the reload"),
    Field("problems", "number", "reload", "bad lines that were skipped"),
    Field("verb", "text", "policy", "`block`, `allow`, `forget`, `pause`, `resume` or `rollback`"),
    Field("entry", "text", "policy", "what the verb was applied to"),
    Field("uid", "number", "policy", "user that gave the command"),
    Field("until", "text", "policy", "when the pause ends"),
    Field("what", "text", "firewall", "what happened to the firewall"),
    Field("status", "number", "firewall", "exit status of a guardian that was restarted"),
    Field("server", "text", "upstream", "which upstream"),
    Field("state", "text", "upstream", "`down` or `up`"),
    Field("reason", "text", "upstream", "why it is down"),
    Field("version", "text", "start", "version of the agent"),
    Field("pid", "number", "start", "process of the supervisor"),
    Field("names", "number", "start", "number of names in all lists, blocked or not"),
    Field("networks", "number", "start", "number of networks in all lists, blocked or not"),
)  # fmt: skip


@cache
def keys(event: str) -> tuple[str, ...]:
    """The keys that an event of this name may have, in order."""
    return tuple(field.key for field in FIELDS if field.belongs_to(event))


def ordered(event: str, values: Mapping[str, Any]) -> Event:
    """An event of this name with these values, in the order of the schema. ValueError for a key that it cannot have."""
    if unknown := values.keys() - set(keys(event)):
        raise ValueError(f"{event} events have no key {', '.join(sorted(unknown))}")
    return {"event": event} | {key: values[key] for key in keys(event) if key in values}


def members(event: str, values: Mapping[str, str]) -> str:
    """The members that follow `opening`, in the order of the schema, each after a comma. `values` are already JSON."""
    return "".join([f',"{key}":{values[key]}' for key in keys(event) if key in values])


_TYPES = {"text": str, "number": int, "flag": bool, "list": list}


@cache
def _types(event: str) -> dict[str, type]:
    """The type of each key. `names` has two; one that the event may not have has that of another event."""
    own = [field for field in FIELDS if field.belongs_to(event)]
    return {field.key: _TYPES[field.type] for field in (*FIELDS, *own)}


def parse(line: str | bytes) -> Event:
    """The event in a line of the log. ValueError unless it is a JSON object whose keys have the types of the schema.

    A key that the schema does not have is accepted: another version of this program may have written the line.
    """
    event: Event = records.from_json(line)
    if not isinstance(event, dict) or type(event.get("event")) is not str:
        raise ValueError("not an event")
    types = _types(event["event"])
    for key, value in event.items():
        kind = types.get(key, type(value))
        if type(value) is not kind or (isinstance(value, list) and any(type(each) is not str for each in value)):
            raise ValueError(f"{key[:20]!r} is not a {kind.__name__}")
    return event


def opening(event: str) -> str:
    """The beginning of an event of a client. Its address follows, then `members`, which are the same for all clients."""
    return f'"event":"{event}","client":'


CLOSING = ',"count":1}\n'  # end of the first record of a kind


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps builds an encoder per call


@lru_cache(maxsize=16)  # all attempts of a batch have the same time
def timestamp(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339, UTC, microseconds."""
    whole, micro = divmod(round(seconds * 1e6), 1_000_000)  # a float has a resolution of 0.25 µs until 2255
    return f"{_second(whole)}.{micro:06d}Z"


@lru_cache(maxsize=16)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def quote(text: str) -> str:
    """Text as a JSON string in ASCII, with control characters escaped."""
    return encode_basestring_ascii(text)


def to_json(event: Event) -> str:
    """An event as a JSON object in ASCII, without control characters."""
    return _encode(event)


def fragment(event: Event) -> str:
    """The members of an event as JSON without braces, as a Folder stores them for a kind."""
    return _encode(event)[1:-1]


def head(wall: float) -> str:
    """The beginning of a line: schema and time. The members follow. `wall`: seconds since 1970."""
    return f'{{"schema":{SCHEMA},"ts":"{timestamp(wall)}",'


def line(members: str, wall: float) -> bytes:
    """A line of the log: schema, time and members."""
    return f"{head(wall)}{members}}}\n".encode()


def encode(event: Event, wall: float) -> bytes:
    """An event as a line of the log."""
    return line(fragment(event), wall)


# ── folding ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Kind:
    """Attempts that are equal but for their time, within a window. Its compiled twin is `native.events.Kind`."""

    __slots__ = ("count", "first", "last", "members", "open", "opened")

    def __init__(self, members: str, opened: float) -> None:
        self.members = members
        self.opened = opened
        self.open = True  # it is in a Folder, so that attempts may be counted in it
        self.count = 0  # attempts since the last record
        self.first = self.last = 0.0

    def again(self, wall: float) -> None:
        """Count one more attempt, at `wall`."""
        if not self.count:
            self.first = wall
        self.count += 1
        self.last = wall


_native = accelerator.load("events")
_kind: type[Kind] = _native.Kind if _native else Kind


def _record(kind: Kind) -> bytes:
    return line(f'{kind.members},"count":{kind.count},"first":"{timestamp(kind.first)}"', kind.last)


class Folder:
    """Folds equal attempts. `now`: monotonic seconds, for the window; `wall`: seconds since 1970, for the records."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self.kinds: dict[Hashable, Kind] = {}  # the compiled fast path reads it too
        self.noted = 0  # attempts, in total

    def note(self, key: Hashable, make: Callable[[], str], now: float, wall: float) -> bytes | None:
        """Count one attempt. Returns the line to write if it is the first of its kind, whose members `make` returns."""
        if self.again(key, wall) is not None:
            return None
        return self.open(key, make(), now, wall)[0]

    def again(self, key: Hashable, wall: float) -> Kind | None:
        """Count one attempt of a kind that is open. Returns the kind; None if the attempt is the first of its kind."""
        kind = self.kinds.get(key)
        if kind is not None:
            self.noted += 1
            kind.again(wall)
        return kind

    def open(self, key: Hashable, members: str, now: float, wall: float) -> tuple[bytes, Kind | None]:
        """Count the first attempt of a kind. (its line, the kind, or None if MAX_KINDS are open already)."""
        self.noted += 1
        kind = _kind(members, now) if len(self.kinds) < MAX_KINDS else None
        if kind is not None:
            self.kinds[key] = kind
        return f"{head(wall)}{members}{CLOSING}".encode(), kind

    def due(self, now: float, limit: int = MAX_KINDS) -> list[tuple[bytes, int]]:
        """(line, count) for each kind whose window has passed, `limit` at most. A kind without further attempts is removed."""
        records = []
        last = now - self._window  # kinds are in the order of their opening
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
        """(line, count) for all open kinds, before the process ends."""
        records = [(_record(kind), kind.count) for kind in self.kinds.values() if kind.count]
        for kind in self.kinds.values():
            kind.open = False
        self.kinds.clear()
        return records
