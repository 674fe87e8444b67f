"""Event lines on their way to the supervisor: gathered for a moment, sent together, counted as lost beyond a limit.

The ledger is a memory page in which a child counts the attempts that it has noted. The account is the supervisor's count of
those that were written to the event log. The difference is what a killed child had not handed over, so these attempts are
counted as lost. Both counts are files, so that they survive the supervisor too: the next one reads them at its start.
"""

import asyncio
import contextlib
import mmap
import os
import struct
from collections.abc import Callable

FLUSH_SECONDS = 0.1  # that a line may wait for others
RETRY_SECONDS = 0.003  # until the next attempt when the channel is full; in a flood the supervisor empties it in less
MAX_HELD_OCTETS = 4 << 20  # while the supervisor does not read
MAX_PACKET_OCTETS = 100_000  # of lines in one packet

MAX_MISSING = 1 << 32  # attempts of one child; a larger difference means that a count is damaged

_COUNT = struct.Struct("=Q")
_WRITTEN = ".written"  # suffix of the account's file, beside the ledger's


class Ledger:
    """The child's count of the attempts that it has noted."""

    def __init__(self, fd: int) -> None:
        self._page = mmap.mmap(fd, mmap.PAGESIZE)

    @staticmethod
    def make(path: str = "") -> int:
        """The descriptor of a new page: a file, or if none can be created, memory that lasts as long as this process."""
        if path:
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # not truncated: an older child may still have it mapped
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    os.posix_fallocate(fd, 0, mmap.PAGESIZE)  # now, so that a full disk cannot raise SIGBUS in the writer
                except OSError:
                    os.close(fd)
                    os.unlink(path)
                    raise
                return fd
        fd = os.memfd_create("embargo-ledger", os.MFD_CLOEXEC)
        os.ftruncate(fd, mmap.PAGESIZE)
        return fd

    @property
    def noted(self) -> memoryview:
        """The counter in the page itself, for the compiled code, which increments it directly."""
        return memoryview(self._page)[:8].cast("Q")

    def write(self, noted: int) -> None:
        """Set the number of attempts noted."""
        _COUNT.pack_into(self._page, 0, noted)


class Account:
    """The supervisor's count of the attempts that were written to the event log, and its view of the child's ledger.

    A compromised child may write anything into its page and truncate it. So the supervisor reads the page instead of mapping
    it, which could raise SIGBUS, and the child has no descriptor of the account's file.
    """

    def __init__(self, path: str) -> None:
        self.page = Ledger.make(path)  # first: an old page beside a new account would make written attempts look missing
        try:
            self._file = Ledger.make(path + _WRITTEN)
        except OSError:
            os.close(self.page)
            raise
        self._written = 0

    def add_written(self, attempts: int) -> None:
        """Add attempts that were written to the event log, or already counted as lost."""
        self._written += attempts
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _COUNT.pack(self._written), 0)

    def missing(self) -> int:
        """The number of attempts noted but not written."""
        return _missing(os.pread(self.page, _COUNT.size, 0), _COUNT.pack(self._written))

    def close(self) -> None:
        """Close both descriptors; the files stay."""
        os.close(self.page)
        os.close(self._file)

    @staticmethod
    def take_unwritten(directory: str) -> int:
        """The number of attempts that earlier processes noted and never wrote. Removes the files in the directory."""
        missing = 0
        paths = [f"{directory}/{name}" for name in os.listdir(directory)]
        for path in paths:
            if not path.endswith(_WRITTEN):
                with contextlib.suppress(OSError):
                    missing += _missing(_start(path), _start(path + _WRITTEN))
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return missing


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_COUNT.size)


def _missing(noted: bytes, written: bytes) -> int:
    """The difference within its bounds; 0 if one of the counts is truncated."""
    if len(noted) < _COUNT.size or len(written) < _COUNT.size:
        return 0
    missing: int = _COUNT.unpack(noted)[0] - _COUNT.unpack(written)[0]
    return min(max(missing, 0), MAX_MISSING)


class Outbox:
    """`send(lines, lost, attempts)` sends lines, the number of lost events, and the number of attempts that both represent;
    it returns whether the channel took them. `ledger`: where attempts are counted, if anywhere.
    """

    def __init__(self, send: Callable[[bytes, int, int], bool], ledger: Ledger | None) -> None:
        self._send = send
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._counts: list[int] = []  # attempts per line
        self._held = 0
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None
        self.page = ledger.noted if ledger is not None else memoryview(bytearray(8)).cast("Q")

    def set_noted(self, attempts: int) -> None:
        """Write the total number of attempts noted so far into the ledger."""
        if self._ledger is not None:
            self._ledger.write(attempts)

    def add(self, line: bytes, count: int = 1) -> None:
        """Queue a line that represents `count` attempts; beyond the limit they are counted as lost."""
        if self._held + len(line) > MAX_HELD_OCTETS:
            self._lost += count
            return
        self._lines.append(line)
        self._counts.append(count)
        self._held += len(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> bool:
        """Send all queued lines. False if some must wait because the channel is full."""
        self._timer = None
        while self._lines or self._lost:
            taken, size = 0, 0
            while taken < len(self._lines) and (not taken or size + len(self._lines[taken]) <= MAX_PACKET_OCTETS):
                size += len(self._lines[taken])
                taken += 1
            attempts = sum(self._counts[:taken]) + self._lost
            if not self._send(b"".join(self._lines[:taken]), self._lost, attempts):
                self._timer = self._loop.call_later(RETRY_SECONDS, self.flush)
                return False
            self._lost = 0
            self._held -= size
            del self._lines[:taken], self._counts[:taken]
        return True

    async def empty(self, seconds: float) -> None:
        """Send all queued lines, retrying for `seconds` at most."""
        deadline = self._loop.time() + seconds
        while not self.flush() and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
