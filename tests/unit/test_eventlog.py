"""The event log as `log` and `top` read it: files in order, filters, counts, times."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from embargo.cli import eventlog, show
from embargo.daemon.ask.client import ControlError

DNS = {
    "event": "dns",
    "ts": "2026-01-31T12:00:00.5Z",
    "app": "qq",
    "function": "core",
    "client": "192.0.2.7",
    "qname": "a.test",
}
DROP = {**DNS, "event": "drop", "ts": "2026-01-31T12:00:01.0Z", "client": "192.0.2.8", "dst": "203.0.113.9", "count": 3}
RELOAD = {"event": "reload", "ts": "2026-01-31T12:00:02.0Z"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def write(path: Path, *events: Any) -> None:
    path.write_text("".join(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events))


def kinds(path: Path, since: str = "", *, app: str = "", client: str = "", layer: str | None = None) -> list[str]:
    reader = eventlog.Reader(str(path))
    return [told["event"] for _, told in reader.select(since, follow=False, app=app, client=client, layer=layer)]


def test_rotated_files_come_first_the_oldest_of_them_before_all(path: Path) -> None:
    for name, text in (("", "now"), (".1", "before"), (".2", "first")):
        Path(f"{path}{name}").write_text(f"{text}\n")
    assert list(eventlog.lines(str(path), follow=False)) == ["first", "before", "now"]


def test_a_line_that_is_not_complete_or_not_json_is_no_event(path: Path) -> None:
    path.write_text(f"not json\n{json.dumps(DNS)}\n{json.dumps(DROP)}")
    assert kinds(path) == ["dns"]


def test_events_are_filtered_by_app_client_layer_and_time(path: Path) -> None:
    write(path, DNS, DROP, RELOAD)
    assert kinds(path) == ["dns", "drop", "reload"]
    assert kinds(path, layer="drop") == ["drop"]
    assert kinds(path, app="qq") == ["dns", "drop"]  # a filter for attempts leaves other events out
    assert kinds(path, app="alipay") == []
    assert kinds(path, client="192.0.2.7") == ["dns"]
    assert kinds(path, "2026-01-31T12:00:01Z") == ["drop", "reload"]
    assert kinds(path, "2026-01-31T13:00:01+01:00") == ["drop", "reload"]


def test_attempts_are_counted_with_the_count_of_each_line(path: Path) -> None:
    write(path, DNS, DROP, RELOAD, {**DNS, "count": "many"})
    counted = eventlog.Reader(str(path)).count("")
    assert counted["apps"] == {"qq/core": 4}
    assert counted["clients"] == {"192.0.2.7": 1, "192.0.2.8": 3}
    assert counted["names"] == {"a.test": 4}
    assert counted["addresses"] == {"203.0.113.9": 3}
    assert eventlog.Reader(str(path)).count("2026-01-31T12:00:01")["apps"] == {"qq/core": 3}


VALUES: list[Any] = [None, True, -1, 1.5, 10**400, "\ud800\x9b2J", [], [1], {}, {"a": []}]
ODD = [
    "[" * 90_000, '{"a":' * 90_000, "7", "null", "[1]", "Infinity", "", "\x1b]0;owned\x07\x1b[2J", "{}", '{"event":["dns"]}',
    json.dumps(DNS)[:-1] + ',"count":Infinity}', json.dumps(DNS)[:-1] + ',"count":1e999}', json.dumps(DNS)[:-5],
    *(json.dumps(DROP | {key: value}) for key in (*DROP, "names", "list", "line", "direct") for value in VALUES),
]  # fmt: skip


@pytest.mark.parametrize("follow", [False, True])
def test_no_line_ends_a_reader_or_reaches_the_terminal_raw(path: Path, follow: bool) -> None:
    """Whatever a process that was taken over may have written: each line is shown in print, or passed over and counted."""
    path.write_bytes(b"".join(line.encode(errors="surrogatepass") + b"\n" for line in ODD) + b"\xff\xfe\n")
    write(Path(f"{path}.1"), DNS)
    with path.open("ab") as file:
        file.write(json.dumps(RELOAD).encode() + b"\n")
    reader, found = eventlog.Reader(str(path)), []
    for line, told in reader.select("", follow=follow, app="", client="", layer=None):
        assert line.isascii()
        assert line.isprintable()
        assert show.event(told).isprintable()
        found.append(told["event"])
        if told["event"] == "reload":
            break
    assert (found[0], found[-1]) == ("dns", "reload")
    assert reader.passed_over == len(ODD) + 1 - (len(found) - 2)
    assert reader.passed_over > len(ODD) / 2
    for counted in reader.counts("1970-01-01T00:00:00Z", repeat=False):
        assert counted["apps"]["qq/core"] >= 1


@pytest.mark.parametrize("text", ["yesterday", "10", "10x", "1000000000d", "٣m", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a time; write 10m"):
        eventlog.earliest(text)


def test_a_time_is_compared_in_utc() -> None:
    assert eventlog.earliest("2026-01-31T12:00:00+02:00") == "2026-01-31T10:00:00"
    assert eventlog.earliest("999999d") == "1970-01-01T00:00:00"


def test_a_log_that_does_not_exist_is_said_with_the_likely_reason(path: Path) -> None:
    with pytest.raises(ControlError, match="no agent has run with this"):
        list(eventlog.lines(str(path), follow=False))
