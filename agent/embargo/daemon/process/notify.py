"""Communication with systemd: readiness and state (sd_notify(3)), and file descriptors that survive a restart.

Listening sockets are put into systemd's fd store, so that queries wait in them while the agent restarts. Without systemd,
nothing here has any effect.
"""

import array
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Sequence

FIRST = 3  # SD_LISTEN_FDS_START
MAX_FDS = 200  # descriptors in one message; SCM_MAX_FD is 253
SYSTEMCTL_SECONDS = 2.0  # for systemctl to answer


def notify(state: str, fds: Sequence[int] = ()) -> None:
    """Send a state to the service manager. Errors are ignored: without the message, it times out and logs that itself."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([state.encode()], rights, 0, b"\0" + path[1:].encode() if path.startswith("@") else path)


def watchdog() -> float:
    """The watchdog interval that systemd expects, in seconds (sd_watchdog_enabled(3)); 0 without one."""
    pid, microseconds = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and pid in ("", str(os.getpid())) else 0.0


def store(name: str, fds: Sequence[int]) -> None:
    """Store these descriptors under this name, in place of those stored under it. FDPOLL=0 keeps TCP sockets with errors."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    for start in range(0, len(fds), MAX_FDS):
        notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds[start : start + MAX_FDS])


def stored_name(*parts: object) -> str:
    """A name that the fd store accepts: no colon, 255 octets at most."""
    return re.sub(r"[^A-Za-z0-9.%-]", ".", "-".join(map(str, parts)))[:255]


def inherited() -> list[tuple[str, int]]:
    """(name, descriptor) of all that systemd stored, or opened for a socket unit (sd_listen_fds(3)). Later calls: none."""
    taken = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if taken["LISTEN_PID"] != str(os.getpid()) or not taken["LISTEN_FDS"].isdecimal():
        return []
    fds = range(FIRST, FIRST + int(taken["LISTEN_FDS"]))
    names = taken["LISTEN_FDNAMES"].split(":") if taken["LISTEN_FDNAMES"] else []
    for fd in fds:
        os.set_inheritable(fd, False)
    return [(names[number] if number < len(names) else "", fd) for number, fd in enumerate(fds)]


def restarting() -> bool:
    """Whether systemd is about to start the agent again. Then the rules stay, since the next run would only add them again."""
    if not managed():
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        unit = _unit()
        command = ["systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager"]
        jobs = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False).stdout
        return any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines())
    return False


def managed() -> bool:
    """Whether a service manager started the agent, and restarts it after a failure."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def _unit() -> str:
    """The unit of this process, from its cgroup: `0::/system.slice/embargo.service`."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        units = re.findall(r"/([^/\n]+\.service)", file.read())
    return units[-1] if units else "embargo.service"
