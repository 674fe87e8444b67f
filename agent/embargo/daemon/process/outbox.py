"""Event lines on their way to the supervisor: gathered for a moment, sent together, counted as lost beyond a bound.

The ledger is a page that a child writes: how many attempts it has noted. The supervisor's account of it tells how many of them
were written. What a killed process had noted and not handed over is the difference, so it is counted although nobody can tell
it any more. Both are files: of a supervisor that is killed, the next one reads what was never written.
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

MAX_MISSING = 1 << 32  # attempts of one child that nobody has told of: a page that says more is damaged

_COUNT = struct.Struct("=Q")
_WRITTEN = ".written"  # the account beside the page


class Ledger:
    """The child's end."""

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

    @property
    def noted(self) -> memoryview:
        """The number of attempts noted, for whoever counts faster than by `write`."""
        return memoryview(self._page)[:8].cast("Q")

    def write(self, noted: int) -> None:
        _COUNT.pack_into(self._page, 0, noted)


class Account:
    """The supervisor's end.

    A child that is taken over may write anything into its page, and cut it short: the page is read and never mapped, which
    would be our end, and the child has no descriptor of the file in which the rest stands.
    """

    def __init__(self, path: str) -> None:
        self.page = Ledger.make(path)  # first: an old page with a new account would tell of attempts that were written
        try:
            self._file = Ledger.make(path + _WRITTEN)
        except OSError:
            os.close(self.page)
            raise
        self._written = 0

    def wrote(self, attempts: int) -> None:
        """So many more are written, or counted as lost."""
        self._written += attempts
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _COUNT.pack(self._written), 0)

    def missing(self) -> int:
        """Attempts noted and not written."""
        return _missing(os.pread(self.page, _COUNT.size, 0), _COUNT.pack(self._written))

    def close(self) -> None:
        os.close(self.page)
        os.close(self._file)

    @staticmethod
    def unwritten(directory: str) -> int:
        """Attempts that were noted below this directory in an earlier run and never written. To be asked once."""
        found = 0
        paths = [f"{directory}/{name}" for name in os.listdir(directory)]
        for path in paths:
            if not path.endswith(_WRITTEN):
                with contextlib.suppress(OSError):
                    found += _missing(_start(path), _start(path + _WRITTEN))
        for path in paths:
            with contextlib.suppress(OSError):
                os.unlink(path)
        return found


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_COUNT.size)


def _missing(noted: bytes, written: bytes) -> int:
    """The difference, as far as it can be; a page or an account that is cut short tells nothing."""
    if len(noted) < _COUNT.size or len(written) < _COUNT.size:
        return 0
    missing: int = _COUNT.unpack(noted)[0] - _COUNT.unpack(written)[0]
    return min(max(missing, 0), MAX_MISSING)


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
        self.page = ledger.noted if ledger is not None else memoryview(bytearray(8)).cast("Q")

    def noted(self, attempts: int) -> None:
        """So many attempts have been noted in all."""
        if self._ledger is not None:
            self._ledger.write(attempts)

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
            self._lost = 0
            self._held -= size
            del self._lines[:taken], self._counts[:taken]
        return True

    async def empty(self, seconds: float) -> None:
        """Send all that is held, for at most so long."""
        deadline = self._loop.time() + seconds
        while not self.flush() and self._loop.time() < deadline:
            await asyncio.sleep(0.005)
