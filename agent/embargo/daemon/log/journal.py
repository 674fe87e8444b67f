"""The event log: JSON lines to a file that is rotated by size and count.

Writing never stops anything else: when the disk refuses, events are counted as lost, the next event that can be written
carries the count, and the trouble is told once.
"""

import contextlib
import logging
import os
import time

from embargo import events
from embargo.events import Event

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks whether the file still has its name


class Journal:
    """Appends whole lines. `keep` rotated files stand beside it as events.jsonl.1 (the newest) and so on."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._looked = 0.0
        self._torn = False  # the last line is not whole; what follows must not become part of it
        self.lost = 0  # events that could not be written, all in all
        self._untold = 0
        self.trouble = ""

    def configure(self, path: str, max_bytes: int, keep: int) -> None:
        """Other settings from the next event on. OSError when that file cannot be opened; all is as before then."""
        before = self.path, self._fd, self._size, self._torn
        self._max_bytes, self._keep = max_bytes, keep
        if path == self.path:
            return
        self.path = path
        try:
            self.open()
        except OSError:
            self.path, self._fd, self._size, self._torn = before
            raise
        if before[1] >= 0:
            os.close(before[1])

    def open(self) -> None:
        """Open or make the file. OSError when it cannot be."""
        os.makedirs(os.path.dirname(self.path), mode=0o750, exist_ok=True)
        # without waiting: a FIFO that nobody reads is refused instead of stopping the agent
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size
        self._looked = time.monotonic()
        self._torn = self._size > 0 and not self._ends_in_newline()  # a power cut left half a line

    def _ends_in_newline(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def event(self, event: Event) -> None:
        """Write one event with the time of now, and tell it to who reads the log of the service."""
        data = events.encode(event, time.time())
        log.info("%s", data[data.index(b'"event"') : -2].decode(), extra={"event": event})
        self.lines(data, 1)

    def lines(self, data: bytes, count: int) -> None:
        """Write `count` encoded lines. The first one after a loss carries how many were lost, as `lost`."""
        untold = self._untold
        if untold:
            first, newline, rest = data.partition(b"\n")
            data = first[:-1] + b',"lost":%d}' % untold + newline + rest
        if self._append(data):
            self._untold -= untold
            self.trouble = ""
        else:
            self._lose(count)

    def note_lost(self, count: int) -> None:
        """Events that never came here."""
        self._lose(count)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._untold += count

    def _append(self, data: bytes) -> bool:
        try:
            if self._fd < 0:
                self.open()
            elif time.monotonic() - self._looked > LOOK:
                self._look()
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            self._write(b"\n" + data if self._torn else data)
        except OSError as error:
            if not self.trouble:
                log.error("events cannot be written to %s: %s; they are counted as lost", self.path, error.strerror)
            self.trouble = error.strerror or str(error)
            return False
        return True

    def _write(self, data: bytes) -> None:
        start = self._size
        while data:
            try:
                written = os.write(self._fd, data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, start)  # no half line stays behind
                    self._size = start
                self._torn = self._torn or self._size != start
                raise
            self._size += written
            data = data[written:]
        self._torn = False

    def _look(self) -> None:
        """Somebody may have moved or removed the file: go on in the one that has its name."""
        self._looked = time.monotonic()
        try:
            same = os.stat(self.path).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            same = False
        if not same:
            self.close()
            self.open()

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.1")
        self.close()
        self.open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
