"""Messages to systemd's journal with fields of their own (its native protocol, systemd.io/JOURNAL_NATIVE_PROTOCOL).

`journalctl -u embargo EMBARGO_EVENT=reload` finds events by kind; each member of one is a field, EMBARGO_ and its name.
"""

import logging
import os
import socket
import sys
from typing import Any

SOCKET = "/run/systemd/journal/socket"
LARGEST = 32 << 10  # octets of a field; a datagram has to hold all of them
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class JournalHandler(logging.Handler):
    """OSError when there is no journal."""

    def __init__(self, path: str = SOCKET) -> None:
        super().__init__()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.connect(path)

    def emit(self, record: logging.LogRecord) -> None:
        """What the journal does not take goes to standard error, which systemd reads too."""
        message = self.format(record)
        try:
            self._sock.send(fields(record, message))
        except OSError:
            print(message, file=sys.stderr)

    def close(self) -> None:
        self._sock.close()
        super().close()


def fields(record: logging.LogRecord, message: str) -> bytes:
    told: dict[str, Any] = {
        "MESSAGE": message, "PRIORITY": _PRIORITY.get(record.levelno, 6),
        "SYSLOG_IDENTIFIER": "embargo", "EMBARGO_MODULE": record.name,
        **{f"EMBARGO_{name.upper()}": value for name, value in getattr(record, "event", {}).items()},
    }  # fmt: skip
    return b"".join(_field(name, value) for name, value in told.items())


def _field(name: str, value: Any) -> bytes:
    data = str(value).encode(errors="replace")[:LARGEST]
    if b"\n" in data:
        return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def under_it() -> bool:
    """Is standard error the journal's (systemd.exec(5), JOURNAL_STREAM)?"""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return device == str(found.st_dev) and inode == str(found.st_ino)
