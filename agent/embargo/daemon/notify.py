"""Readiness and state messages to systemd (sd_notify(3)); silence where nobody listens."""

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager. An error is nobody's business: without it the service manager times out and says so."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), b"\0" + path[1:].encode() if path.startswith("@") else path)
        except OSError:
            return
