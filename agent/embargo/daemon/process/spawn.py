"""Starting processes: as children of this one, or by systemd in a unit of their own.

A separate unit sets the user and the sandbox of its process, so the agent needs no capability to do that, nor to kill a process
of another user. `handover` is the program at the other end.
"""

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Protocol

from embargo.daemon.process import MODULES

START_SECONDS = 30.0  # for systemd to start a unit, even while the machine boots
KILL_SECONDS = 2.0  # for systemd to kill the remaining processes of a unit whose warden has ended
_MAX_MESSAGE = 64  # octets of a message of the warden


class Process(Protocol):
    """A started process. It has the descriptors that it was given, and no others of this process."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def uid(self) -> int:
        """The user id that it started with."""
        ...

    async def wait(self) -> int:
        """Wait for its end. Its exit status, or the negated number of the signal that killed it."""
        ...

    def kill(self) -> None:
        """Kill it. No effect if it has already ended."""
        ...


class Spawn(Protocol):
    """A way to start processes."""

    gives_user: bool  # whether the process starts with its final user; otherwise with ours, and it changes by itself

    async def __call__(self, name: str, fds: Sequence[int]) -> Process:
        """Start this process (a key of `process.MODULES`) with these descriptors; their numbers are its `sys.argv`. OSError."""
        ...


class Here:
    """Starts children of this process, in the same sandbox."""

    gives_user = False

    async def __call__(self, name: str, fds: Sequence[int]) -> Process:
        command = [sys.executable, "-P", "-m", MODULES[name], *map(str, fds)]
        nothing = asyncio.subprocess.DEVNULL
        return _Child(await asyncio.create_subprocess_exec(*command, stdin=nothing, pass_fds=fds, start_new_session=True))


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.uid = os.geteuid()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class Units:
    """Has systemd start each process in a unit of its own, by connecting to the socket `directory/name` (Accept=yes)."""

    gives_user = True

    def __init__(self, directory: str) -> None:
        self._directory = directory

    async def __call__(self, name: str, fds: Sequence[int]) -> Process:
        path = f"{self._directory}/{name}"
        with contextlib.ExitStack() as undo:
            leash, its_end = _pair(undo)
            life, its_life = _pair(undo)
            with its_end, its_life, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.setblocking(False)
                try:
                    connection.connect(path)
                    socket.send_fds(connection, [b"!"], [its_end.fileno(), its_life.fileno(), *fds])
                except OSError as error:
                    raise OSError(error.errno, error.strerror, path) from None
                its_end.close()
                its_life.close()
                message = await _received(leash, START_SECONDS)
            ids = re.fullmatch(rb"(\d{1,9}) (\d{1,10})", message)
            if not ids:
                raise OSError(errno.ECHILD, f"systemd did not start the process; see journalctl -u 'embargo-{name}@*'", path)
            undo.pop_all()
        return _OnLeash(int(ids[1]), int(ids[2]), leash, life)


def _pair(undo: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(ours.close)
    ours.setblocking(False)
    return ours, theirs


async def _received(sock: socket.socket, seconds: float | None) -> bytes:
    """The next message; empty if the other end is closed or sends nothing within `seconds`."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, _MAX_MESSAGE), seconds)
    return b""


class _OnLeash:
    """A process under a warden, which the kernel kills when this end of the leash closes, also because this process has ended.

    `life`: a socket whose other end is open in the process and its descendants; it closes when all of them have ended.
    """

    def __init__(self, pid: int, uid: int, leash: socket.socket, life: socket.socket) -> None:
        self.pid, self.uid = pid, uid
        self._leash, self._life = leash, life
        self._status: int | None = None

    async def wait(self) -> int:
        if self._status is None:
            message = await _received(self._leash, None)
            await _received(self._life, KILL_SECONDS)
            self._status = int(message) if re.fullmatch(rb"-?\d{1,3}", message) else -signal.SIGKILL
            self._leash.close()
            self._life.close()
        return self._status

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._leash.shutdown(socket.SHUT_WR)


HERE = Here()
