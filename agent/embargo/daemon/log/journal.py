"""The event log: JSON lines in a file that is rotated by size and count.

A failed write affects nothing else: the events are counted as lost, the next event that can be written carries the count in its
member `lost`, and the error is logged once.
"""

import contextlib
import logging
import os
import time
from collections.abc import Sequence

from embargo import events
from embargo.events import Event

log = logging.getLogger(__name__)

RECHECK_SECONDS = 1.0  # between checks whether the file was moved or removed


class Journal:
    """Appends whole lines to a file. Up to `keep` rotated files are beside it: events.jsonl.1 (the newest), .2 and so on."""

    def __init__(self, path: str, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._size = 0
        self._checked = 0.0
        self._torn = False  # the last line is incomplete: begin the next one on a new line
        self.lost = 0  # events that were not written since the start
        self._unreported = 0  # of these, the ones that no written event has reported yet
        self.trouble = ""  # the error of the last write; empty if it succeeded

    def configure(self, path: str, max_bytes: int, keep: int) -> None:
        """Change the settings from the next event on. OSError if the file cannot be opened: then nothing changes."""
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
        """Open the file, or create it. OSError."""
        os.makedirs(os.path.dirname(self.path), mode=0o750, exist_ok=True)
        # O_NONBLOCK: fail on a FIFO without a reader instead of waiting for one
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._fd = os.open(self.path, flags, 0o640)
        self._size = os.fstat(self._fd).st_size
        self._checked = time.monotonic()
        self._torn = self._size > 0 and not self._ends_in_newline()  # after a power cut

    def _ends_in_newline(self) -> bool:
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def event(self, event: Event) -> None:
        """Write one event with the current time, and log it as a message of the service too."""
        log.info("%s", events.fragment(event), extra={"event": event})
        self.write([events.stamped(event, time.time())])

    def write(self, told: Sequence[Event]) -> None:
        """Write events. After a loss, the first one gets the member `lost` with the number of lost events."""
        unreported = self._unreported
        if unreported:
            told = [told[0] | {"lost": unreported + told[0].get("lost", 0)}, *told[1:]]
        if self._append(b"".join(map(events.framed, told))):
            self._unreported -= unreported
            self.trouble = ""
        else:
            self._lose(len(told))

    def note_lost(self, count: int) -> None:
        """Count events that were lost before they reached the journal."""
        self._lose(count)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._unreported += count

    def _append(self, data: bytes) -> bool:
        try:
            if self._fd < 0:
                self.open()
            elif time.monotonic() - self._checked > RECHECK_SECONDS:
                self._reopen_if_moved()
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            self._write(b"\n" + data if self._torn else data)
        except OSError as error:
            if not self.trouble:
                log.error("cannot write events to %s: %s; they are counted as lost", self.path, error.strerror)
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
                    os.ftruncate(self._fd, start)  # remove the incomplete line
                    self._size = start
                self._torn = self._torn or self._size != start
                raise
            self._size += written
            data = data[written:]
        self._torn = False

    def _reopen_if_moved(self) -> None:
        """Open the file by its name again if the open one was moved or removed, for instance by logrotate."""
        self._checked = time.monotonic()
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
        """Close the file; the next event opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
