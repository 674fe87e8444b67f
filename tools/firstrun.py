"""Writes run/embargo.toml for `make run`: the port and the layers that this machine and this user allow.

python -m tools.firstrun. A file that `make run` wrote and nobody edited is written again when something else is possible now
(root after a run without root, port 53 free again); an edited file stays as it is. Every choice is printed with its reason.
"""

import errno
import fcntl
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from embargo.daemon.host import machine
from embargo.daemon.process import privileges

TOP = Path(__file__).parent.parent
PORTS = (53, 5300, 5353, 10053)
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Choice(NamedTuple):
    """What the configuration says of this machine."""

    port: int
    firewall: bool  # whether addresses are blocked with nftables


def obstacle(port: int) -> str:
    """Why a port cannot be bound on loopback (UDP, TCP, IPv4, IPv6): "is in use by …", "needs root …"; empty if it can.

    The kernel checks the privilege first, so a port that needs root may be in use as well, and root would not help.
    """
    refused = list(_refused(port))
    if holder := next((holder for _, holder in refused if holder), ""):
        return f"is in use by {holder}"
    if any(number == errno.EACCES for number, _ in refused):
        return "needs root or CAP_NET_BIND_SERVICE"
    return "is in use" if refused else ""


def _refused(port: int) -> Iterator[tuple[int, str]]:
    """The error of each bind that fails, and the process that holds the port there."""
    for family, address in _LOOPBACK:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as sock:
                    if kind == socket.SOCK_STREAM:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):  # anything else: this machine has no IPv6
                    yield error.errno, machine.holder(address, port, udp=kind == socket.SOCK_DGRAM)


def choose(ports: Sequence[int] = PORTS) -> tuple[Choice, list[str]]:
    """The first port that can be bound, whether the firewall can be used, and why not the best of both. SystemExit."""
    obstacles = {}
    for port in ports:
        if why := obstacle(port):
            obstacles[port] = why
            continue
        notes = [f"Port {ports[0]} {obstacles[ports[0]]}: listening on port {port} instead."] if obstacles else []
        firewall = privileges.CAP_NET_ADMIN in privileges.effective()
        if not firewall:
            notes.append("No CAP_NET_ADMIN: names are blocked, addresses are not. `make run` as root blocks both.")
        return Choice(port, firewall), notes
    reasons = "; ".join(f"port {port} {why}" for port, why in obstacles.items())
    raise SystemExit(f"No port to listen on: {reasons}. Set [dns] listen in run/embargo.toml.")


def render(choice: Choice) -> str:
    values = {"TOP": str(TOP), "PORT": str(choice.port), "FIREWALL": str(choice.firewall).lower()}
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], (TOP / "tools/run.toml").read_text())


def chosen(text: str) -> Choice | None:
    """The choice that a file was written with; None if it was edited since."""
    port, firewall = re.search(r'"127\.0\.0\.1:(\d+)"', text), re.search(r"^enabled = (true|false)$", text, re.MULTILINE)
    if not port or not firewall:
        return None
    choice = Choice(int(port[1]), firewall[1] == "true")
    return choice if render(choice) == text else None


def write(file: Path) -> list[str]:
    """Write the configuration if it is missing, or unedited and made for other means than this run has; what to print."""
    if not file.exists():
        choice, notes = choose()
        file.write_text(render(choice))
        return [*notes, f"Configuration written: {file}"]
    text = file.read_text()
    before = chosen(text)
    if before is None:
        return [f"Configuration: {file} (edited, so it is not changed)", *_unused(text)]
    choice, notes = choose()
    if choice == before:
        return [*notes, f"Configuration: {file}"]
    file.write_text(render(choice))
    return [*notes, f"Configuration written again, since this run can use other means than the last one: {file}"]


def _unused(text: str) -> list[str]:
    """What an edited configuration leaves unused of root's powers."""
    if privileges.CAP_NET_ADMIN in privileges.effective() and re.search(r"^enabled = false$", text, re.MULTILINE):
        return [
            "It has firewall.enabled = false, so addresses are not blocked. Set it to true, or delete the file and run again."
        ]
    return []


def foreign(directory: Path) -> Path | None:
    """A file or directory below that belongs to another user: the agent could not use it without root."""
    if os.geteuid() == 0:
        return None
    return next((path for path in (directory, *directory.rglob("*")) if path.lstat().st_uid != os.geteuid()), None)


def running(directory: Path) -> bool:
    """Whether an agent holds the lock of this runtime directory."""
    try:
        with open(directory / "lock", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def main() -> None:
    directory = TOP / "run"
    directory.mkdir(exist_ok=True)
    if path := foreign(directory):
        sys.exit(
            f"{path} belongs to another user, from an earlier `make run`. Run as that user or as root, or remove {directory}."
        )
    if running(directory):
        sys.exit(f"An agent already runs with {directory}/embargo.toml: edit that file, which takes effect, or stop it first.")
    (directory / "apps.d").mkdir(exist_ok=True)
    file = directory / "embargo.toml"
    for line in write(file):
        print(line)
    if os.geteuid() == 0:  # the owner of the checkout may edit it
        owner = (TOP / "pyproject.toml").stat()
        os.chown(file, owner.st_uid, owner.st_gid)


if __name__ == "__main__":
    main()
