"""Event lines: their content, and the folding of equal attempts."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from embargo import events
from embargo.events import Folder, Way
from support import schema

WALL = 1_700_000_000.25  # 2023-11-14T22:13:20.25Z


def read(line: bytes) -> dict[str, Any]:
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


CLIENT = "192.0.2.7"


def ways(kind: str, entry: str = "entry") -> list[Way]:
    """An attempt at a name, by an entry, of a client, of anybody."""
    return [
        Way(b"\7" + kind.encode(), lambda: f'"qname":{events.quote(kind)}'), Way(b"\0", lambda: f'"rule":"{entry}"'),
        Way(b"", lambda: '"others":true'), Way(b"", lambda: '"others":true,"any":true'),
    ]  # fmt: skip


def note(folder: Folder, kind: str, now: float, client: str = CLIENT) -> bytes | None:
    return folder.note(client, ways(kind), now, WALL + now)


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (WALL, "2023-11-14T22:13:20.250000Z"),
        (1_700_000_000.123457, "2023-11-14T22:13:20.123457Z"),
        (1_700_000_000.999_999_7, "2023-11-14T22:13:21.000000Z"),
        (951_782_399.999999, "2000-02-28T23:59:59.999999Z"),
        (4_102_444_800.000001, "2100-01-01T00:00:00.000001Z"),
    ],
)
def test_a_time_is_rfc_3339_in_utc_with_microseconds(seconds: float, text: str) -> None:
    assert events.timestamp(seconds) == text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert datetime.fromisoformat(text).astimezone(UTC).timestamp() == pytest.approx(seconds, abs=1e-6)


def test_an_event_is_one_line_of_json_that_begins_with_schema_and_time() -> None:
    line = events.encode({"event": "reload", "generation": 42, "ok": True, "problems": ["a", None]}, WALL)
    assert line == (
        b'{"schema":1,"ts":"2023-11-14T22:13:20.250000Z","event":"reload","generation":42,"ok":true,"problems":["a",null]}\n'
    )


def test_no_control_octet_reaches_a_line() -> None:
    nasty = "".join(map(chr, range(0x100))) + '"\\\u2028\u202e\ud800\U0001f4b0'
    line = events.encode({"event": "dns", "qname": nasty, nasty: [nasty, {"deep": nasty}]}, WALL)
    assert line.isascii()
    assert all(0x20 <= octet < 0x7F for octet in line[:-1])
    assert read(line)["qname"] == nasty
    assert read(line)[nasty] == [nasty, {"deep": nasty}]
    assert json.loads(events.quote(nasty)) == nasty


def test_members_are_encoded_once_and_get_their_time_later() -> None:
    members = events.fragment({"event": "dns", "qname": "a.example"})
    assert members == '"event":"dns","qname":"a.example"'
    assert events.line(members, WALL) == events.encode({"event": "dns", "qname": "a.example"}, WALL)


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS = ("dns", "drop", "reload", "policy", "firewall", "upstream", "start", "stop")


def test_every_event_is_named_where_the_key_event_is_declared() -> None:
    (field,) = [field for field in events.FIELDS if field.key == "event"]
    assert tuple(re.findall(r"`(\w+)`", field.meaning)) == EVENTS
    assert {event for field in events.FIELDS for event in field.events.split()} == set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_has_each_key_once_and_begins_with_schema_time_and_event(event: str) -> None:
    found = events.keys(event)
    assert len(set(found)) == len(found)
    assert found[:3] == ("schema", "ts", "event")


@pytest.mark.parametrize("event", ["dns", "drop"])
def test_the_client_stands_first_since_all_else_is_the_same_for_every_client(event: str) -> None:
    assert events.keys(event)[3] == "client"


def test_every_type_is_one_of_json() -> None:
    assert {field.type for field in events.FIELDS} == set(schema.TYPES)


def test_members_stand_in_the_order_of_the_schema_whatever_order_they_are_given_in() -> None:
    values = {"rule": '"a.example"', "line": "7", "qname": '"a.example"', "mode": '"block"'}
    assert events.members("dns", values) == ',"qname":"a.example","mode":"block","line":7,"rule":"a.example"'
    event = events.ordered("drop", {"rule": "a.example", "client": "192.0.2.1", "dport": 53})
    assert list(event) == ["event", "client", "dport", "rule"]


def test_an_event_has_no_key_that_is_not_declared() -> None:
    with pytest.raises(ValueError, match="drop events have no key qname"):
        events.ordered("drop", {"qname": "a.example"})


# ── folding ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_attempt_is_written_at_once_and_the_rest_in_one_record() -> None:
    folder = Folder()
    first = note(folder, "a.example", 0.0)
    assert first is not None
    assert read(first) == {"schema": 1, "ts": events.timestamp(WALL), "qname": "a.example", "count": 1}
    assert [note(folder, "a.example", now) for now in (1.0, 2.0, 9.5)] == [None] * 3
    assert folder.due(9.9) == []
    ((rest, _),) = folder.due(10.0)
    assert read(rest) == {
        "schema": 1, "ts": events.timestamp(WALL + 9.5), "qname": "a.example", "count": 3, "first": events.timestamp(WALL + 1),
    }  # fmt: skip


def test_a_continuing_kind_has_one_record_per_window() -> None:
    folder = Folder()
    note(folder, "a.example", 0.0)
    note(folder, "a.example", 9.0)
    assert len(folder.due(10.0)) == 1
    assert note(folder, "a.example", 11.0) is None
    assert folder.due(19.0) == []
    ((rest, _),) = folder.due(20.0)
    assert (read(rest)["count"], read(rest)["first"]) == (1, events.timestamp(WALL + 11))


def test_a_limited_number_of_due_kinds_is_written_at_a_time() -> None:
    """Writing all of them would delay queries."""
    folder = Folder()
    for number in range(25):
        for _ in range(2):
            note(folder, f"n{number}.example", 0.0)
    names = []
    for expected in (10, 10, 5, 0):
        lines = folder.due(10.0, limit=10)
        assert len(lines) == expected
        names += [read(line)["qname"] for line, _ in lines]
    assert names == [f"n{number}.example" for number in range(25)]


def test_a_kind_without_attempts_for_a_window_starts_again() -> None:
    folder = Folder()
    note(folder, "a.example", 0.0)
    assert folder.due(10.0) == []
    assert note(folder, "a.example", 10.5) is not None


def test_kinds_are_folded_separately() -> None:
    folder = Folder()
    assert note(folder, "a.example", 0.0) is not None
    assert note(folder, "b.example", 5.0) is not None
    note(folder, "a.example", 6.0)
    note(folder, "b.example", 6.0)
    assert [read(line)["qname"] for line, _ in folder.due(10.0)] == ["a.example"]
    assert [read(line)["qname"] for line, _ in folder.due(15.0)] == ["b.example"]


def test_open_kinds_are_written_at_the_end() -> None:
    folder = Folder()
    for now in (0.0, 1.0, 2.0):
        note(folder, "a.example", now)
    note(folder, "quiet.example", 2.0)
    assert [(read(line)["qname"], read(line)["count"], count) for line, count in folder.flush()] == [("a.example", 2, 2)]
    assert folder.noted == 4
    assert folder.flush() == []
    assert note(folder, "a.example", 3.0) is not None


def test_members_are_made_for_the_first_of_a_kind_only() -> None:
    folder = Folder()
    made: list[str] = []

    def members() -> str:
        made.append('"a":1')
        return made[-1]

    for now in range(5):
        folder.note(CLIENT, [Way(b"kind", members)] * 4, float(now), WALL)
    assert len(made) == 1


# ── the share of a client ────────────────────────────────────────────────────────────────────────────────────────────────


def flood(folder: Folder, client: str, names: int, now: float, entries: int = 1) -> list[bytes]:
    """Attempts at so many names, each by one of so many entries; the records that are written."""
    found = []
    for number in range(names):
        entry = number % entries
        way = ways(f"n{number}.example", f"entry {entry}")
        way[1] = Way(b"\0" + b"%d" % entry * (entries > 1), way[1].members)
        found.append(folder.note(client, way, now, WALL + now))
    return [each for each in found if each is not None]


def counted(lines: Iterable[bytes]) -> int:
    return sum(read(line)["count"] for line in lines)


def test_beyond_its_share_a_client_is_counted_by_entry_without_names() -> None:
    folder = Folder()
    lines = flood(folder, CLIENT, 100_000, 0.0, entries=3)
    assert len(lines) == 403
    assert sum("qname" in read(line) for line in lines) == 400
    assert {read(line)["rule"] for line in lines[400:]} == {"entry 0", "entry 1", "entry 2"}
    assert counted(lines) + sum(count for _, count in folder.due(10.0)) == 100_000
    assert note(folder, "another.example", 0.0, "192.0.2.8") is not None, "others have their own share"


def test_beyond_that_it_is_counted_without_entries() -> None:
    folder = Folder()
    lines = flood(folder, CLIENT, 20_000, 0.0, entries=1000)
    assert len(lines) == 501
    assert [read(line).get("others") for line in lines[500:]] == [True]
    assert counted(lines) + sum(count for _, count in folder.flush()) == 20_000


def test_a_host_with_many_addresses_has_the_share_of_its_network() -> None:
    """Of a /64 or /24, whatever it calls itself."""
    for addresses in ([f"2001:db8:1::{number:x}" for number in range(5000)], [f"192.0.2.{number}" for number in range(256)]):
        folder, lines = Folder(), []
        for address in addresses:
            lines += flood(folder, address, 50, 0.0)
        assert len(lines) <= 4001
        assert sum("qname" in read(line) for line in lines) == 2000
        assert counted(lines) + sum(count for _, count in folder.flush()) == 50 * len(addresses)
        assert "qname" in read(note(folder, "a.example", 0.0, "198.51.100.7") or b"")


def test_what_is_remembered_is_bounded_whoever_asks() -> None:
    folder = Folder()
    lines = []
    for number in range(40_000):
        lines += flood(folder, f"10.{number >> 12}.{number >> 4 & 255}.{number & 15}", 1, 0.0)
    assert len(folder) == len(lines) == 20_481
    assert [read(line).get("any") for line in lines[-1:]] == [True]
    assert folder.due(10.0, limit=30_000)
    assert (len(folder), folder.clients, len(folder._networks)) == (0, {}, 0), "nothing is left of what is over"


def test_a_client_has_names_again_in_the_next_window() -> None:
    folder = Folder()
    flood(folder, CLIENT, 1000, 0.0)
    assert note(folder, "new.example", 9.0) is None
    folder.due(10.0)
    assert "qname" in read(note(folder, "new.example", 10.0) or b"")


# ── the border ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ATTEMPT = {"schema": 1, "ts": events.timestamp(WALL), "event": "dns", "client": CLIENT, "qname": "a.example", "count": 1}


def sent(**changed: Any) -> bytes:
    return json.dumps({key: value for key, value in (ATTEMPT | changed).items() if value is not None}).encode()


def test_an_event_of_a_child_is_taken_as_it_is() -> None:
    assert events.received(sent(), ("dns",)) == ATTEMPT


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[" * 90_000, b"\x1b]0;owned\x07", sent()[:-1], b"[" + sent() + b"]", sent() + b" " + sent(),
        sent(event="policy"), sent(event="drop"), sent(event=["dns"]), sent(event=None), sent(verb="allow"), sent(uid=0),
        sent(lots="more"), sent(schema=2), sent(schema=None), sent(ts=None), sent(ts="now"), sent(ts="2026-11-30T16:40:00Z\n"),
        sent(first=5), sent(first="9"), sent(count="1"), sent(count=-1), sent(count=1 << 60), sent(count=True), sent(qname=[]),
    ],
    ids=lambda line: str(line[:60]),
)  # fmt: skip
def test_what_a_child_cannot_have_seen_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has its own text
        events.received(line, ("dns",))


NASTY = "".join(map(chr, range(0x100))) + '"\\\u2028\u202e\ud800\U0001f4b0'


@pytest.mark.parametrize("qname", ["a.example", NASTY, NASTY * 100, "\x00" * 100_000])
@pytest.mark.parametrize("names", [[], ["b.example"], [NASTY] * 4, ["c"] * 50_000])
def test_a_line_of_the_log_is_one_line_of_printable_ascii_with_room_for_more(qname: str, names: list[str]) -> None:
    line = events.framed({"event": "drop", "names": names, "qname": qname, "list": qname, "count": 7, "ts": "now"})
    assert len(line) <= events.MAX_LINE - events.ROOM
    assert all(0x20 <= octet < 0x7F for octet in line[:-1])
    found = read(line)
    assert found["count"] == 7
    assert found.get("cut", False) is ((found["qname"], found["names"]) != (qname, names))


def test_a_line_has_the_order_of_the_schema() -> None:
    line = events.framed({"count": 1, "qname": "x" * 5000, "lost": 3} | ATTEMPT)
    schema.read(line)


def test_names_of_events_that_do_not_exist_are_not_remembered() -> None:
    for number in range(100):
        events.parse(f'{{"event":"unknown{number}"}}')
    assert events._types.cache_info().currsize < 50
