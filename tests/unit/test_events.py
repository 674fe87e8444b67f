"""Event lines: their content, and the folding of equal attempts."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from embargo import events
from embargo.events import Folder
from support import schema

WALL = 1_700_000_000.25  # 2023-11-14T22:13:20.25Z


def read(line: bytes) -> dict[str, Any]:
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


def note(folder: Folder, kind: str, now: float) -> bytes | None:
    return folder.note(kind, lambda: f'"qname":{events.quote(kind)}', now, WALL + now)


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
        folder.note("kind", members, float(now), WALL)
    assert len(made) == 1


def test_kinds_beyond_the_limit_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_KINDS", 2)
    folder = Folder()
    lines = [note(folder, kind, 0.0) for kind in ("a", "b", "c", "c", "a")]
    assert [line is not None for line in lines] == [True, True, True, True, False]
    assert [read(line)["count"] for line, _ in folder.flush()] == [1]
