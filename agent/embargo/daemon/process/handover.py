"""A process that systemd has started for the agent (`spawn`): what it is to work with, and the warden that it stands under.

systemd passes on the agent's connection (sd_listen_fds(3)); one packet on it brings the leash, a sign of life and the
descriptors of the work. This process becomes the warden, its child does the work. When the agent lets its end of the leash
go, the kernel kills the warden (F_SETSIG, fcntl(2)), which takes neither a capability nor the same user; and when the warden,
the unit's main process, has ended in any way, systemd kills what is left of the unit. So a worker that was taken over cannot
shake off the leash: it has no descriptor of it, cannot reach into the warden's memory, and to end the warden is to end itself.
"""

import contextlib
import fcntl
import importlib
import os
import signal
import socket
import sys

from embargo.daemon.process import MODULES, notify, privileges  # and no more: what the warden imports, it keeps in memory

MAX_FDS = 8
_F_SETSIG = 10  # linux/fcntl.h


def main() -> None:
    privileges.shut_off()  # first: other workers of the same user may have been taken over
    name = sys.argv[1]
    if len(passed := notify.inherited()) != 1:
        sys.exit("the agent has this process started, by its socket; nobody else can")
    with socket.socket(fileno=passed[0][1]) as connection:
        _, fds, _, _ = socket.recv_fds(connection, 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if len(fds) < 2:
        sys.exit("whoever wanted this process has gone")
    leash, life, *work = fds  # the worker keeps `life`: that it is open means that it lives
    status = _stand_over(socket.socket(fileno=leash), [life, *work])
    if status is not None:
        sys.exit(status if status >= 0 else 128 - status)
    sys.argv[1:] = map(str, work)
    importlib.import_module(MODULES[name]).main()


def _stand_over(leash: socket.socket, others: list[int]) -> int | None:
    """In the warden: be on the leash, and wait for the child; its exit status, or the negative signal. None in the child."""
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, _F_SETSIG, signal.SIGKILL)
    usual = fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_NONBLOCK
    fcntl.fcntl(leash, fcntl.F_SETFL, usual | os.O_ASYNC)
    _leave_if_let_go(leash)
    child = os.fork()
    if not child:
        leash.close()
        return None
    for fd in others:
        os.close(fd)
    leash.send(f"{child} {os.geteuid()}".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    fcntl.fcntl(leash, fcntl.F_SETFL, usual)  # it is let go when the agent has heard this, and we want to end by ourselves
    with contextlib.suppress(OSError):  # nobody is there to hear it
        leash.send(str(status).encode())
    return status


def _leave_if_let_go(leash: socket.socket) -> None:
    """What came before the kernel was told whom to kill."""
    try:
        leash.recv(1)
    except BlockingIOError:
        return
    sys.exit("whoever wanted this process does not any more")


if __name__ == "__main__":
    main()
