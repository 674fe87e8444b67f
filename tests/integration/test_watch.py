"""Which changes cause a notification."""

import threading
from pathlib import Path

import pytest

from embargo.daemon.host.watch import Watch

SOON = 10.0


def test_changes_are_notified_but_not_those_of_the_event_log(tmp_path: Path) -> None:
    hinted = threading.Event()
    watch = Watch(hinted.set)
    ours, theirs = tmp_path / "events.jsonl", tmp_path / "embargo.toml"
    theirs.write_text("")
    watch.follow([str(theirs)], ours=str(ours))
    try:
        ours.write_text("an event\n")
        ours.rename(tmp_path / "events.jsonl.1")  # rotated
        ours.write_text("another\n")
        theirs.write_text("[dns]\n")  # comes after them
        assert hinted.wait(SOON)
        watch.follow([str(theirs)], ours=str(ours))
        hinted.clear()
        ours.write_text("one more\n")
        (tmp_path / "mark").write_text("")  # events arrive in order, so earlier ones have been seen by now
        assert hinted.wait(SOON)
    finally:
        watch.close()


def test_only_changes_of_the_event_log_are_ignored(tmp_path: Path) -> None:
    hints: list[str] = []
    watch = Watch(lambda: hints.append("hint"))
    ours, theirs = tmp_path / "events.jsonl", tmp_path / "apps"
    theirs.mkdir()
    ours.write_text("")
    watch.follow([str(theirs)], ours=str(ours))
    seen = threading.Event()
    try:
        for _ in range(50):
            with ours.open("a") as file:
                file.write("an event\n")
        before = len(hints)
        watch._hint = seen.set
        (theirs / "x.list").write_text("a.test\n")
        assert seen.wait(SOON)
        assert before == 0
    finally:
        watch.close()


def test_a_machine_without_a_thread_to_watch_with_is_scanned_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(observer: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("watchdog.observers.api.BaseObserver.start", start)
    watch = Watch(lambda: None)
    assert not watch.follow([str(tmp_path)])
    watch.close()
