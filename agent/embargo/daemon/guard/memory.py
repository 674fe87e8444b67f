"""The guardian's memory of addresses on disk: a snapshot now and then, and each address learnt or freed since.

The file is JSON lines: a head with the time, the rows of `learning.Book.saved`, then the rows that changed since. A line
that is not whole, and all after it, is ignored; so is a file that is older than a day.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

from embargo import records
from embargo.daemon.host import whole
from embargo.firewall.learning import GATHERING_SECONDS, IN_USE_SECONDS, Book

VERSION = 1
SNAPSHOT_SECONDS = 300.0  # between two snapshots; what is learnt in between is appended at once
MAX_OCTETS = 64 << 20  # of a file that is read; a full memory is a third of that
ROWS_AT_ONCE = 100  # of a snapshot, a millisecond, before other tasks run

_Line = dict[str, Any]  # one line of the file

log = logging.getLogger(__name__)


class Memory:
    """The file at `path` for the addresses in `book`. `trouble`: why it cannot be written, empty while it can."""

    def __init__(self, path: str, book: Book) -> None:
        self.path = path
        self._book = book
        self._file: IO[bytes] | None = None
        self._saved = 0.0
        self._late: list[tuple[float, _Line]] | None = None  # (time, row) of what is noted while a snapshot is written
        self.trouble = ""

    def recall(self, now: float) -> bool:
        """Read what was saved. False where that is of no use: then nothing is blocked for GATHERING_SECONDS."""
        try:
            with open(self.path, encoding="utf-8") as file:
                usable = self._read(file.read(MAX_OCTETS).split("\n"), now)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("%s: the learnt addresses cannot be read: %s; they are learnt anew", self.path, error)
            usable = False
        if not usable:
            self._book.proving = now + GATHERING_SECONDS
        return usable

    def _read(self, lines: list[str], now: float) -> bool:
        head = records.from_json(lines[0])
        age = max(time.time() - head["saved"], 0.0)  # 0 where the clock was set back since
        if head["version"] != VERSION or age > IN_USE_SECONDS:
            return False
        rows: dict[str, dict[str, Any]] = {}
        for line in lines[1:-1]:  # the last one is empty, or cut short
            try:
                row = records.from_json(line)
                then = max(age - row.pop("after", 0.0), 0.0)
                for key in ("used", "until"):
                    if key in row:
                        row[key] -= then
                rows.pop(row["address"], None)
                rows[row["address"]] = row
            except (ValueError, TypeError, KeyError, AttributeError):
                break
        self._book.restore(rows.values(), now)
        # the rest of the time without blocking still has to pass: while no guardian ran, no answers were seen
        left = min(max(float(head.get("proving", 0.0)), 0.0), GATHERING_SECONDS)
        self._book.proving = now + left if left else 0.0
        return True

    def save(self, now: float) -> None:
        """Write a snapshot, whole or not at all."""
        saved = time.time()
        content = self._head(now, saved) + _lines(self._book.saved(now))
        with self._writing(saved):
            whole.replace({self.path: content}, 0o600)

    async def save_beside(self, now: float) -> None:
        """The same with other tasks running in between: a full book takes most of a second, and clients wait for answers."""
        saved = time.time()
        self._late = []
        parts = [self._head(now, saved)]
        for part in self._book.saved_in_parts(now, ROWS_AT_ONCE):
            parts.append(_lines(part))
            await asyncio.sleep(0)
        with self._writing(saved):
            await asyncio.to_thread(lambda: whole.replace({self.path: b"".join(parts)}, 0o600))
        self._late = None

    def _head(self, now: float, saved: float) -> bytes:
        return _lines([{"version": VERSION, "saved": saved, "proving": round(max(self._book.proving - now, 0.0), 1)}])

    @contextlib.contextmanager
    def _writing(self, saved: float) -> Iterator[None]:
        """Append to the snapshot of this time, which the body writes. An error is logged once for as long as it lasts."""
        try:
            yield
            self._saved = saved
            if self._file is not None:
                self._file.close()
            self._file = open(self.path, "ab")  # noqa: SIM115  # it stays open until the next snapshot
            self._write(self._late or [])
            self.trouble = ""
        except OSError as error:
            if not self.trouble:
                log.error("%s: the learnt addresses cannot be saved: %s", self.path, error.strerror)
            self.trouble = error.strerror or str(error)

    def note(self, addresses: list[bytes], now: float) -> None:
        """Append these addresses, which were learnt or freed just now: a guardian that is killed must not forget them."""
        noted = [(time.time(), row) for row in self._book.rows(addresses, now)]
        if self._late is not None:
            self._late += noted
        with contextlib.suppress(OSError):  # the next snapshot reports it
            self._write(noted)

    def _write(self, noted: list[tuple[float, _Line]]) -> None:
        if self._file is not None:
            # the clock may have been set back since
            self._file.write(_lines(row | {"after": max(round(at - self._saved, 1), 0.0)} for at, row in noted))
            self._file.flush()

    def close(self) -> None:
        """Append nothing more."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lines(rows: Iterable[_Line]) -> bytes:
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()
