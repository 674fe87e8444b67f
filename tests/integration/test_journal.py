"""The event log on a real file system: rotation, a full disk, lost events."""

import json
from pathlib import Path

from embargo.daemon.log.journal import Journal


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_it_rotates_by_size_and_keeps_a_number_of_files(tmp_path: Path) -> None:
    path = tmp_path / "log/events.jsonl"
    journal = Journal(str(path), max_bytes=1000, keep=3)
    for number in range(100):
        journal.event({"event": "start", "number": number})
    journal.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["events.jsonl", "events.jsonl.1", "events.jsonl.2", "events.jsonl.3"]
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [event["number"] for file in reversed(files[1:]) for event in read(file)] + [e["number"] for e in read(path)]
    assert kept == list(range(100 - len(kept), 100))


def test_a_full_disk_loses_events_and_counts_them(tmp_path: Path) -> None:
    journal = Journal("/dev/full", max_bytes=1 << 20, keep=3)
    journal.write([{"event": "dns"}, {"event": "dns"}])
    journal.event({"event": "start"})
    assert (journal.lost, journal.trouble) == (3, "No space left on device")
    journal.configure(str(tmp_path / "events.jsonl"), 1 << 20, 3)
    journal.event({"event": "start"})
    journal.event({"event": "stop"})
    journal.close()
    first, second = read(tmp_path / "events.jsonl")
    assert first["lost"] == 3
    assert "lost" not in second


def test_events_lost_before_the_journal_are_reported_once(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "events.jsonl"), 1 << 20, 3)
    journal.note_lost(7)
    journal.write([{"event": "dns"}, {"event": "dns"}])
    journal.close()
    first, second = read(tmp_path / "events.jsonl")
    assert first == {"event": "dns", "lost": 7}
    assert second == {"event": "dns"}


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    (tmp_path / "events.jsonl").symlink_to("target")
    journal = Journal(str(tmp_path / "events.jsonl"), 1 << 20, 3)
    journal.event({"event": "start"})
    assert journal.lost == 1
    assert (tmp_path / "target").read_text() == ""
