"""Hints that something under a path may have changed. What changed, if anything, is for others to find out."""

import logging
import os
from collections.abc import Callable, Iterable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

log = logging.getLogger(__name__)

_CHANGES = frozenset({"created", "modified", "moved", "deleted", "closed"})  # not "opened": reading is no change


class Watch(FileSystemEventHandler):
    """Calls `hint` from a thread of its own."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint
        self._observer: BaseObserver | None = None
        self._watched: frozenset[tuple[str, bool]] = frozenset()
        self._ours = ""

    def dispatch(self, event: FileSystemEvent) -> None:
        path = os.fsdecode(event.src_path)
        if event.event_type not in _CHANGES or (self._ours and path.startswith(self._ours)):
            return
        if event.event_type == "modified" and path == os.path.dirname(self._ours):  # what else happens in it is told apart
            return
        self._hint()

    def follow(self, paths: Iterable[str], ours: str = "") -> bool:
        """Watch these files and directories instead of others; for one that is missing, the nearest directory above it.

        True when others are watched than before. `ours`: the beginning of the paths that we write to ourselves.
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
            except OSError as error:  # no such directory any more, or no inotify watch left
                log.warning("%s is not watched (%s); changes there are seen at the next scan", path, error.strerror)
        observer.daemon = True
        self._watched = wanted
        try:
            observer.start()
        except OSError as error:  # no inotify instance left (fs.inotify.max_user_instances)
            log.warning("nothing is watched (%s); changes are seen at the next scan", error.strerror)
            return False
        self._observer = observer
        return True

    def close(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None


def _places(path: str) -> Iterable[tuple[str, bool]]:
    """The directories to watch for a path: itself with all below when it is one, and the one it stands in."""
    if os.path.isdir(path):
        yield os.path.realpath(path), True
    above = os.path.dirname(path)
    while above != "/" and not os.path.isdir(above):
        above = os.path.dirname(above)
    if above != "/":
        yield above, False
    if os.path.islink(path):
        yield os.path.dirname(os.path.realpath(path)), False
