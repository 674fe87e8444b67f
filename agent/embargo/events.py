"""Events: their schema, their encoding as JSON lines (embargo-events(5)), and the folding of equal attempts.

A child process sends its events to the supervisor as JSON objects, one a line (`line`). The supervisor checks each by the
schema (`received`) and alone makes the lines of the log (`framed`): a child that was taken over can write nothing else there.

The first attempt of a kind is written immediately; all further ones within a window become one record with `count`, `first` and
the time of the last. So a flood of equal attempts costs one dictionary entry, and none is left uncounted. The kinds of a client
are limited: what it attempts beyond them is counted by entry, then by client, without names (WAYS).
"""

import ipaddress
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple

from embargo import accelerator, records

SCHEMA = 1  # incremented when a key is removed or changes its meaning
WINDOW = 10.0  # seconds
MAX_LINE = 4096  # octets of a line of the log: longer values are cut
ROOM = 128  # of these, for members that number and chain the lines: `seq` and `prev`

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
    Field("answer", "text", "dns", "name or address in the answer that the entry claims; absent if it claims the name itself"),
    Field("learnt", "flag", "drop", "true when the address is in no list: the entry blocks a name that led to it"),
    Field("generation", "number", "dns drop reload start stop", "compiled policy that decided, or that took effect"),
    Field("others", "flag", "dns drop",
        "true when `count` is attempts at further names, or addresses and ports: a client has 400 records of its own in 10 s,"
        " then one for each entry (of a `drop`: app and function), beyond 500 one without; a /24 or /64 has five times that"),
    Field("count", "number", "dns drop",
        "equal attempts merged into this record: the first is written at once, the rest in one record per 10 s"),
    Field("first", "text", "dns drop", "time of the first attempt in a record of several; `ts` is the time of the last"),
    Field("unlogged", "flag", "drop",
        "true if `count` includes packets that were only counted (over 1,000 a second of one app and function); with these"
        " records, the counts of the log are the kernel's"),
    Field("lost", "number", "",
        "events before this one that could not be written, or that a killed process had not handed over"),
    Field("cut", "flag", "", "true when values were cut, because a line has 4,096 octets at most"),
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


_EVENTS = frozenset(name for field in FIELDS for name in field.events.split())


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
    types = _types(event["event"] if event["event"] in _EVENTS else "")
    for key, value in event.items():
        kind = types.get(key, type(value))
        if type(value) is not kind or (isinstance(value, list) and any(type(each) is not str for each in value)):
            raise ValueError(f"{key[:20]!r} is not a {kind.__name__}")
    return event


def received(line: bytes, allowed: Collection[str]) -> Event:
    """The event in a line of another process. ValueError unless it is one of those allowed, with keys of the schema alone.

    Its texts may be of any length and content: `framed` writes them so that they are one line of printable ASCII.
    """
    event = parse(line)
    if event["event"] not in allowed:
        raise ValueError(f"no {event['event'][:20]!r} event is allowed here")
    if unknown := event.keys() - set(keys(event["event"])):
        raise ValueError(f"{event['event']} events have no key {min(unknown)[:20]!r}")
    for key, value in event.items():
        if type(value) is int and not 0 <= value <= MAX_NUMBER:
            raise ValueError(f"{key} is not between 0 and {MAX_NUMBER}")
        if key in ("ts", "first") and not _TIME.fullmatch(value):
            raise ValueError(f"{key} is not a time")
    if event.get("schema") != SCHEMA or "ts" not in event:
        raise ValueError("no schema or no time")
    return event


MAX_NUMBER = (1 << 53) - 1  # what every reader of JSON takes (RFC 8259 section 6)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


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
    """An event as a line for the supervisor."""
    return line(fragment(event), wall)


def stamped(event: Event, wall: float) -> Event:
    """An event with schema and time. `wall`: seconds since 1970."""
    return {"schema": SCHEMA, "ts": timestamp(wall), **event}


def framed(event: Event) -> bytes:
    """The line of the log for an event: one line of printable ASCII, MAX_LINE octets at most, of which ROOM are left free.

    The longest values are cut until it fits, and the event says so (`cut`).
    """
    text = to_json(_in_order(event))
    while len(text) >= MAX_LINE - ROOM:
        longest = max(event, key=lambda key: len(_encode(event[key])))
        event = event | {longest: _shorter(event[longest]), "cut": True}
        text = to_json(_in_order(event))
    return text.encode() + b"\n"


def _in_order(event: Event) -> Event:
    return {key: event[key] for key in keys(event["event"]) if key in event} | event


def _shorter(value: Any) -> Any:
    """About half of a text or list."""
    if isinstance(value, list):
        return value[: len(value) // 2] if len(value) > 1 else [_shorter(each) for each in value]
    return f"{value[: len(value) // 2]}\N{HORIZONTAL ELLIPSIS}"


# ── folding ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Kind:
    """Attempts of a client that are equal but for their time, within a window. Its twin is `native.events.Kind`."""

    __slots__ = ("client", "count", "first", "key", "last", "members", "network", "opened", "wide")

    def __init__(self, client: Hashable, key: Hashable, members: str, opened: float, network: str, wide: bool) -> None:
        self.client = client
        self.key = key  # what else its attempts are equal in
        self.members = members
        self.opened = opened
        self.network = network  # of the client
        self.wide = wide  # attempts beyond the client's own kinds
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


class Way(NamedTuple):
    """How an attempt may be counted: with others of this key, in a record with these members."""

    key: Hashable
    members: Callable[[], str]


class _Room(NamedTuple):
    """How many kinds may be open for one more of a Way to be opened."""

    client: int
    network: int
    all: int


#: from an attempt's own kind over those of its entry and of its client to that of everybody, which is always there. In 10 s a
#: client then writes 170 KiB at most in its own kinds, its network 840 KiB, and 20,480 kinds take some 14 MiB of memory
WAYS = (_Room(400, 2_000, 16_384), _Room(500, 2_500, 18_432), _Room(501, 4_000, 20_480))
EVERYBODY = ""  # in place of a client's address


class Folder:
    """Folds equal attempts. `now`: monotonic seconds, for the window; `wall`: seconds since 1970, for the records."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self.clients: dict[Hashable, dict[Hashable, Kind]] = {}  # kinds by client and key; the compiled fast path reads it too
        self._queue: deque[Kind] = deque()  # all kinds, in the order of their opening
        self._networks: Counter[str] = Counter()  # kinds by network
        self.noted = 0  # attempts, in total

    def __len__(self) -> int:
        return len(self._queue)

    def again(self, client: Hashable, key: Hashable, wall: float) -> bool:
        """Count one attempt if its kind is open."""
        kinds = self.clients.get(client)
        kind = kinds.get(key) if kinds is not None else None
        if kind is None:
            return False
        self.noted += 1
        kind.again(wall)
        return True

    def note(self, client: str | bytes, ways: Sequence[Way], now: float, wall: float) -> bytes | None:
        """Count one attempt, in the first of these ways for which there is a kind or room. The record to write, if any.

        `client`: its address, as text or octets; `ways`: one for each of WAYS, and one for everybody.
        """
        network = _network(client)
        for number, way in enumerate(ways[:-1]):
            if self.again(client, way.key, wall):
                return None
            if self._has_room(WAYS[number], client, network):
                return self._open(client, way, now, wall, network, wide=number > 0)
        if self.again(EVERYBODY, ways[-1].key, wall):
            return None
        return self._open(EVERYBODY, ways[-1], now, wall, network, wide=True)

    def _has_room(self, room: _Room, client: Hashable, network: str) -> bool:
        kinds = len(self.clients.get(client, ()))
        return kinds < room.client and self._networks[network] < room.network and len(self._queue) < room.all

    def _open(self, client: Hashable, way: Way, now: float, wall: float, network: str, *, wide: bool) -> bytes:
        self.noted += 1
        members = way.members()
        kind = _kind(client, way.key, members, now, network, wide)
        self.clients.setdefault(client, {})[way.key] = kind
        self._networks[network] += 1
        self._queue.append(kind)
        return f"{head(wall)}{members}{CLOSING}".encode()

    def due(self, now: float, limit: int = WAYS[-1].all) -> list[tuple[bytes, int]]:
        """(record, count) for each kind whose window has passed, `limit` at most. Kinds without further attempts are closed.

        So are those beyond a client's own: there may be room for these again.
        """
        records = []
        for _ in range(limit):
            if not self._queue or self._queue[0].opened > now - self._window:
                break
            kind = self._queue.popleft()
            if kind.count:
                records.append((_record(kind), kind.count))
            if kind.count and not kind.wide:
                kind.count, kind.opened = 0, now
                self._queue.append(kind)
            else:
                self._close(kind)
        return records

    def _close(self, kind: Kind) -> None:
        kinds = self.clients[kind.client]
        del kinds[kind.key]
        if not kinds:
            del self.clients[kind.client]
        self._networks[kind.network] -= 1
        if not self._networks[kind.network]:
            del self._networks[kind.network]

    def flush(self) -> list[tuple[bytes, int]]:
        """(record, count) for all open kinds, before the process ends."""
        records = [(_record(kind), kind.count) for kind in self._queue if kind.count]
        self.clients.clear()
        self._queue.clear()
        self._networks.clear()
        return records


@lru_cache(maxsize=1024)
def _network(client: str | bytes) -> str:
    """The network of a client, which shares its kinds: a host may have every address of a /64."""
    packed = ipaddress.ip_address(client).packed
    return packed[: 3 if len(packed) == 4 else 8].hex()
