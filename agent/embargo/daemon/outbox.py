"""Event lines on their way to the supervisor: gathered for a moment, sent together, counted as lost beyond a bound."""

import asyncio
from collections.abc import Callable
from typing import Any

FLUSH = 0.1  # seconds a line may wait for others; what a killed process can lose
MAX_HELD = 4 << 20  # octets held while the supervisor does not read
MESSAGE = 60_000  # octets of lines in one message


class Outbox:
    """`report` sends a message and says whether the channel took it."""

    def __init__(self, report: Callable[[dict[str, Any]], bool]) -> None:
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._lines: list[bytes] = []
        self._held = 0
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, line: bytes) -> None:
        if self._held + len(line) > MAX_HELD:
            self._lost += 1
            return
        self._lines.append(line)
        self._held += len(line)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH, self.flush)

    def flush(self) -> bool:
        """Send what is held; False when some of it has to wait for the supervisor."""
        self._timer = None
        while self._lines:
            taken, size = 0, 0
            while taken < len(self._lines) and (not taken or size + len(self._lines[taken]) <= MESSAGE):
                size += len(self._lines[taken])
                taken += 1
            text = b"".join(self._lines[:taken]).decode()
            if not self._report({"op": "events", "lines": text, "lost": self._lost}):
                self._timer = self._loop.call_later(FLUSH, self.flush)
                return False
            self._lost = 0
            self._held -= size
            del self._lines[:taken]
        return True
