"""Event lines on their way to the supervisor: gathered for a moment, sent together, counted as lost beyond a bound.

The ledger is a page shared with the supervisor: how many attempts were noted, how many of them were handed over, how many
the supervisor wrote. What a killed process had noted and not handed over is the difference, so it is counted although nobody
can tell it any more. The page is a file: of a supervisor that is killed, the next one reads what was never written.
"""

import asyncio
import contextlib
import mmap
import os
import struct
from collections.abc import Callable

FLUSH = 0.1  # seconds a line may wait for others
FULL = 0.003  # seconds until the next try when the channel is full: in a flood the supervisor empties it in less
MAX_HELD = 4 << 20  # octets held while the supervisor does not read
MESSAGE = 100_000  # octets of lines in one packet

_COUNTS, _WRITTEN = struct.Struct("=QQ"), struct.Struct("=Q")


class Ledger:
    """Both ends of the page: a child writes what it noted and handed over, the supervisor what it wrote."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    @staticmethod
    def make(path: str = "") -> int:
        """The descriptor of a new page: a file, or where none can be had, memory that ends with us."""
        if path:
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # not cut short: an older page may still be mapped
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    os.posix_fallocate(fd, 0, mmap.PAGESIZE)  # a disk that fills later must not end who writes here
                except OSError:
                    os.close(fd)
                    os.unlink(path)
                    raise
                return fd
        fd = os.memfd_create("embargo-ledger", os.MFD_CLOEXEC)
        os.ftruncate(fd, mmap.PAGESIZE)
        return fd

    @staticmethod
    def unwritten(directory: str) -> int:
        """Attempts that were noted below this directory in an earlier run and never written. To be asked once."""
        found = 0
        for name in os.listdir(directory):
            with contextlib.suppress(OSError, struct.error):  # what is no page tells nothing
                with open(f"{directory}/{name}", "rb") as file:
                    page = file.read(mmap.PAGESIZE)
                found += max(_COUNTS.unpack_from(page)[0] - _WRITTEN.unpack_from(page, _COUNTS.size)[0], 0)
                os.unlink(f"{directory}/{name}")
        return found

    @property
    def noted(self) -> memoryview:
        """The first number, for whoever counts faster than by `write`."""
        return memoryview(self._page)[:8].cast("Q")

    def write(self, noted: int, handed: int) -> None:
        _COUNTS.pack_into(self._page, 0, noted, handed)

    def missing(self) -> int:
        """Attempts noted and not handed over."""
        noted, handed = _COUNTS.unpack_from(self._page)
        return max(int(noted - handed), 0)

    def wrote(self, attempts: int) -> None:
        """The supervisor has written so many more, or counted them as lost."""
        written = _WRITTEN.unpack_from(self._page, _COUNTS.size)[0]
        _WRITTEN.pack_into(self._page, _COUNTS.size, written + attempts)


class Outbox:
    """`send` sends lines, a number of lost events and for how many attempts all of it stands; did the channel take them?"""

    def __init__(self, send: Callable[[bytes, int, int], bool], ledger: Ledger | None) -> None:
        self._send = send
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._counts: list[int] = []  # attempts that each line tells of
        self._held = 0
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self._handed = 0
        self._noted = 0
        self.page = ledger.noted if ledger is not None else memoryview(bytearray(8)).cast("Q")

    def noted(self, attempts: int) -> None:
        """So many attempts have been noted in all."""
        self._noted = attempts
        if self._ledger is not None:
            self._ledger.write(attempts, self._handed)

    def add(self, line: bytes, count: int = 1) -> None:
        if self._held + len(line) > MAX_HELD:
            self._lost += count
            return
        self._lines.append(line)
        self._counts.append(count)
        self._held += len(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH, self.flush)

    def flush(self) -> bool:
        """Send what is held; False when some of it has to wait for the supervisor."""
        self._timer = None
        while self._lines or self._lost:
            taken, size = 0, 0
            while taken < len(self._lines) and (not taken or size + len(self._lines[taken]) <= MESSAGE):
                size += len(self._lines[taken])
                taken += 1
            attempts = sum(self._counts[:taken]) + self._lost
            if not self._send(b"".join(self._lines[:taken]), self._lost, attempts):
                self._timer = self._loop.call_later(FULL, self.flush)
                return False
            self._handed += attempts
            self._lost = 0
            self._held -= size
            del self._lines[:taken], self._counts[:taken]
        self.noted(self._noted)
        return True

    async def empty(self, seconds: float) -> None:
        """Send all that is held, for at most so long."""
        deadline = self._loop.time() + seconds
        while not self.flush() and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
