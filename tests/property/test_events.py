"""Folding: every attempt is in exactly one record, in any order and at any time."""

import functools
import json
from collections import Counter
from datetime import datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from embargo import events
from embargo.events import Folder, Way

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
EVENTS = st.dictionaries(st.text(max_size=5).filter(lambda key: key not in ("schema", "ts")), JSON, min_size=1, max_size=5)


@settings(max_examples=50)
@given(EVENTS, st.floats(0, 4e9))
def test_any_event_is_one_line_without_control_characters_that_reads_back(event: dict[str, object], wall: float) -> None:
    line = events.encode(event, wall)
    assert all(0x20 <= octet < 0x7F for octet in line[:-1])
    assert line[-1:] == b"\n"
    found = json.loads(line)
    assert abs(datetime.fromisoformat(found.pop("ts")).timestamp() - wall) <= 1e-6
    assert found == {"schema": events.SCHEMA, **event}


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0, 7), st.booleans()), max_size=60),
    st.lists(st.integers(1, 3), min_size=9, max_size=9),
)
def test_every_attempt_is_in_exactly_one_record(attempts: list[tuple[str, float, bool]], most: list[int]) -> None:
    """Attempts of five kinds of three clients in two networks, few of them folded, with occasional calls of `due`."""
    before, rooms = events.WAYS, [sum(most[: number + 1]) for number in range(9)]
    events.WAYS = tuple(events._Room(*sorted(rooms[number::3])) for number in range(3))  # type: ignore[assignment] # three
    try:
        written, wanted = run(attempts)
    finally:
        events.WAYS = before
    counted: Counter[str] = Counter()
    for record in map(json.loads, written):
        counted[record.get("kind", "")] += record["count"]
        assert record.get("first", record["ts"]) <= record["ts"]
    assert counted.total() == wanted.total()
    assert all(counted[kind] <= wanted[kind] for kind in "abcde"), "what is not in a record of its own is in one without a kind"


def ways(kind: str) -> list[Way]:
    fragment = events.fragment
    return [Way(kind, functools.partial(fragment, {"kind": kind})), *(Way(n, lambda: fragment({"b": 1})) for n in range(3))]


def run(attempts: list[tuple[str, float, bool]]) -> tuple[list[bytes], Counter[str]]:
    folder = Folder()
    written: list[bytes] = []
    wanted: Counter[str] = Counter()
    now = 0.0
    for kind, pause, look in attempts:
        now += pause
        wanted[kind] += 1
        client = {"a": "192.0.2.1", "b": "192.0.2.2"}.get(kind, "2001:db8::1")
        line = folder.note(client, ways(kind), now, 1e9 + now)
        written += [line] if line else []
        if look:
            written += [_told(*each) for each in folder.due(now)]
    written += [_told(*each) for each in folder.flush()]
    assert folder.noted == len(attempts)
    return written, wanted


def _told(line: bytes, count: int) -> bytes:
    assert json.loads(line)["count"] == count
    return line


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=50))
def test_a_kind_never_has_more_than_two_records_in_a_window(pauses: list[float]) -> None:
    """One immediately, one when the window ends."""
    folder = Folder()
    times: list[float] = []
    now = 0.0
    for pause in pauses:
        now += pause
        times += [now] * len(folder.due(now))
        if folder.note("192.0.2.1", ways("a"), now, now) is not None:
            times.append(now)
    for start in times:
        assert sum(start <= time < start + events.WINDOW for time in times) <= 2
