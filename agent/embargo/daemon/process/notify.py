"""What systemd is told and keeps for us: readiness and state (sd_notify(3)), and descriptors over a restart.

What we listen with is given to its fd store, where it outlives us: what arrives while nobody runs waits in the sockets.
Without systemd all of it does nothing.
"""

import array
import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Sequence

FIRST = 3  # SD_LISTEN_FDS_START
AT_ONCE = 200  # descriptors in one message; SCM_MAX_FD is 253
ASKING = 2.0  # seconds for systemd to say what it is about


def notify(state: str, fds: Sequence[int] = ()) -> None:
    """Tell the service manager. An error is nobody's business: without it the service manager times out and says so."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([state.encode()], rights, 0, b"\0" + path[1:].encode() if path.startswith("@") else path)


def watchdog() -> float:
    """Seconds within which systemd wants to hear that all is well; 0 when it does not."""
    pid, microseconds = os.environ.get("WATCHDOG_PID", ""), os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and pid in ("", str(os.getpid())) else 0.0


def store(name: str, fds: Sequence[int]) -> None:
    """Have these kept under this name, and nothing else. FDPOLL=0: a TCP socket with an error is kept too."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    for start in range(0, len(fds), AT_ONCE):
        notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds[start : start + AT_ONCE])


def stored_name(*parts: object) -> str:
    """A name that systemd takes: no colon, 255 octets at most."""
    return re.sub(r"[^A-Za-z0-9.%-]", ".", "-".join(map(str, parts)))[:255]


def inherited() -> list[tuple[str, int]]:
    """(name, descriptor) of what systemd kept, or opened for us (sd_listen_fds(3)). To be asked once: then they are taken."""
    taken = {name: os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if taken["LISTEN_PID"] != str(os.getpid()) or not taken["LISTEN_FDS"].isdecimal():
        return []
    fds = range(FIRST, FIRST + int(taken["LISTEN_FDS"]))
    names = taken["LISTEN_FDNAMES"].split(":") if taken["LISTEN_FDNAMES"] else []
    for fd in fds:
        os.set_inheritable(fd, False)
    return [(names[number] if number < len(names) else "", fd) for number, fd in enumerate(fds)]


def restarting() -> bool:
    """Is systemd about to start us again? Then nothing is taken away that the next run would put there again."""
    if not looked_after():
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        unit = _unit()
        command = ["systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager"]
        jobs = subprocess.run(command, capture_output=True, text=True, timeout=ASKING, check=False).stdout
        return any(line.split()[1:3] == [unit, "restart"] for line in jobs.splitlines())
    return False


def looked_after() -> bool:
    """Is there somebody who starts us again?"""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def _unit() -> str:
    """Our unit, from the cgroup: `0::/system.slice/embargo.service`."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        found = re.findall(r"/([^/\n]+\.service)", file.read())
    return found[-1] if found else "embargo.service"
