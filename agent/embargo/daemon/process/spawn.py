"""How a process of ours begins: started here, or by systemd in a unit of its own.

A unit of its own gives a process its user and its sandbox, so the agent needs no capability to give it one, nor to end a
process of another user. `handover` is the other end of that.
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

START = 30.0  # seconds for systemd to start a unit: a machine that boots is slow
KILLED = 2.0  # seconds for systemd to kill what a warden leaves
_WORD = 64  # octets that the warden says at once


class Process(Protocol):
    """What was started; it has the descriptors that it was given, and no others of ours."""

    @property
    def pid(self) -> int: ...

    @property
    def uid(self) -> int:
        """Whom it runs as, at its start."""
        ...

    async def wait(self) -> int:
        """Its exit status, when it has ended; the negative signal that ended it."""
        ...

    def kill(self) -> None:
        """End it, whatever it does. Nothing happens when it has ended already."""
        ...


class Spawn(Protocol):
    """A way to begin processes."""

    gives_user: bool  # has the process its user from the beginning, or is it us until it becomes somebody else?

    async def __call__(self, name: str, fds: Sequence[int]) -> Process:
        """Run this process (`process.MODULES`); it finds the numbers of these descriptors in `sys.argv`. OSError."""
        ...


class Here:
    """As a child of this process, in our sandbox."""

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
    """Each in a unit of its own: a connection to `directory/name` has systemd start that process's (Accept=yes)."""

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
                word = await _heard(leash, START)
            found = re.fullmatch(rb"(\d{1,9}) (\d{1,10})", word)
            if not found:
                raise OSError(errno.ECHILD, f"systemd did not start it; see journalctl -u 'embargo-{name}@*'", path)
            undo.pop_all()
        return _OnLeash(int(found[1]), int(found[2]), leash, life)


def _pair(undo: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    undo.callback(ours.close)
    ours.setblocking(False)
    return ours, theirs


async def _heard(sock: socket.socket, seconds: float | None) -> bytes:
    """What comes next; empty when nobody has the other end any more, or says nothing for so long."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, _WORD), seconds)
    return b""


class _OnLeash:
    """A process under a warden, whom the kernel kills when the leash is let go: by us, or because we have ended.

    `life`: a socket whose other end the process holds, and whatever it leaves behind, so that their end is seen.
    """

    def __init__(self, pid: int, uid: int, leash: socket.socket, life: socket.socket) -> None:
        self.pid, self.uid = pid, uid
        self._leash, self._life = leash, life
        self._status: int | None = None

    async def wait(self) -> int:
        if self._status is None:
            word = await _heard(self._leash, None)
            await _heard(self._life, KILLED)
            self._status = int(word) if re.fullmatch(rb"-?\d{1,3}", word) else -signal.SIGKILL
            self._leash.close()
            self._life.close()
        return self._status

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._leash.shutdown(socket.SHUT_WR)


HERE = Here()
