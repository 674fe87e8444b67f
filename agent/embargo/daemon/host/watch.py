"""Notifications that something under a path may have changed (inotify(7), by watchdog). The receiver compares the content."""

import logging
import os
from collections.abc import Callable, Iterable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)

_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})  # not "opened", which reading causes too


class Watch(FileSystemEventHandler):
    """Calls `hint` after changes, from its own thread."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._watched: frozenset[tuple[str, bool]] = frozenset()
        self._ours = ""

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by watchdog for each event, in its thread."""
        path = os.fsdecode(event.src_path)
        if event.event_type not in _CHANGES or (self._ours and path.startswith(self._ours)):
            return
        if event.event_type == "modified" and path == os.path.dirname(
            self._ours
        ):  # other changes in that directory have events of their own
            return
        self._hint()

    def follow(self, paths: Iterable[str], ours: str = "") -> bool:
        """Watch these files and directories instead of the previous ones; for a missing one, its nearest existing ancestor.

        Returns whether the watched set has changed. `ours`: common prefix of the paths that this process writes to itself,
        whose changes are ignored.
        """
        self._ours = ours
        wanted = frozenset(place for path in paths for place in _places(path))
        if wanted == self._watched and self._observer is not None:
            return False
        self.close()
        observer = Observer()
        for path, recursive in sorted(wanted):
            try:
                observer.schedule(self, path, recursive=recursive)
            except OSError as error:  # the directory was removed, or no inotify watch is left
                log.warning("%s cannot be watched (%s); changes are found by the periodic scan only", path, error.strerror)
        observer.daemon = True
        self._watched = wanted
        try:
            observer.start()
        except (OSError, RuntimeError) as error:  # no inotify instance (fs.inotify.max_user_instances) or no thread is left
            log.warning("files cannot be watched (%s); changes are found by the periodic scan only", error)
            observer.stop()
            return False
        self._observer = observer
        return True

    def close(self) -> None:
        """Stop watching. Blocks until the thread has ended."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _places(path: str) -> Iterable[tuple[str, bool]]:
    """(directory, recursive) to watch for a path: the path itself if it is a directory, and its parent."""
    if os.path.isdir(path):
        yield os.path.realpath(path), True
    above = os.path.dirname(path)
    while above != "/" and not os.path.isdir(above):
        above = os.path.dirname(above)
    if above != "/":
        yield above, False
    if os.path.islink(path):
        yield os.path.dirname(os.path.realpath(path)), False
