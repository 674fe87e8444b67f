"""Messages to systemd's journal with structured fields (its native protocol, systemd.io/JOURNAL_NATIVE_PROTOCOL).

Each member of an event becomes a field named EMBARGO_ and its key: `journalctl -u embargo EMBARGO_EVENT=reload` finds events.
"""

import logging
import os
import socket
import sys
from typing import Any

SOCKET = "/run/systemd/journal/socket"
MAX_FIELD = 32 << 10  # octets; all fields of a message must fit into a datagram
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class JournalHandler(logging.Handler):
    """A logging handler that sends to the journal. OSError if its socket cannot be reached."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.connect(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a message; if that fails, print it to standard error, which systemd sends to the journal too."""
        message = self.format(record)
        try:
            self._sock.send(fields(record, message))
        except OSError:
            print(message, file=sys.stderr)

    def close(self) -> None:
        """Close the socket to the journal."""
        self._sock.close()
        super().close()


def fields(record: logging.LogRecord, message: str) -> bytes:
    """The datagram for a message."""
    values: dict[str, Any] = {
        "MESSAGE": message, "PRIORITY": _PRIORITY.get(record.levelno, 6),
        "SYSLOG_IDENTIFIER": "embargo", "EMBARGO_MODULE": record.name,
        **{f"EMBARGO_{name.upper()}": value for name, value in getattr(record, "event", {}).items()},
    }  # fmt: skip
    return b"".join(_field(name, value) for name, value in values.items())


def _field(name: str, value: Any) -> bytes:
    data = str(value).encode(errors="replace")[:MAX_FIELD]
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def is_stderr() -> bool:
    """Whether standard error is connected to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return device == str(stderr.st_dev) and inode == str(stderr.st_ino)
