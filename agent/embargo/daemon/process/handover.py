"""The main program of a process that systemd starts for the agent (`spawn`): it receives its descriptors and forks a worker.

systemd passes the agent's connection to it (sd_listen_fds(3)). One packet on the connection carries three kinds of descriptors:
the leash, the life socket, and those for the work. This process then becomes the warden, and its child does the work. When the
agent closes its end of the leash, the kernel kills the warden (F_SETSIG, fcntl(2)); this requires no capability, and the users
may differ. When the warden, as the main process of the unit, ends for any reason, systemd kills the remaining processes of the
unit. A compromised worker cannot escape: it has no descriptor of the leash, cannot access the warden's memory, and ends itself
by ending the warden.
"""

import contextlib
import fcntl
import importlib
import os
import signal
import socket
import sys

from embargo.daemon.process import MODULES, notify, privileges  # only these: the warden's imports stay in memory

MAX_FDS = 8
_F_SETSIG = 10  # linux/fcntl.h


def main() -> None:
    """Receive the descriptors; become the warden, or in the child run the module of the process (argument: its name)."""
    privileges.forbid_inspection()  # first: other workers of the same user may be compromised
    name = sys.argv[1]
    if len(passed := notify.inherited()) != 1:
        sys.exit("this program is started by systemd when the agent connects to its socket; it cannot be run by hand")
    with socket.socket(fileno=passed[0][1]) as connection:
        _, fds, _, _ = socket.recv_fds(connection, 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    if len(fds) < 2:
        sys.exit("the agent closed the connection without sending descriptors")
    leash, life, *work = fds  # the worker keeps `life` open: the agent sees its end when the socket closes
    status = _watch_over(socket.socket(fileno=leash), [life, *work])
    if status is not None:
        sys.exit(status if status >= 0 else 128 - status)
    sys.argv[1:] = map(str, work)
    importlib.import_module(MODULES[name]).main()


def _watch_over(leash: socket.socket, others: list[int]) -> int | None:
    """Fork. In the warden: wait for the child and return its exit status, or the negated signal. In the child: None."""
    fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(leash, _F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(leash, fcntl.F_GETFL) | os.O_NONBLOCK
    fcntl.fcntl(leash, fcntl.F_SETFL, flags | os.O_ASYNC)
    _exit_if_closed(leash)
    child = os.fork()
    if not child:
        leash.close()
        return None
    for fd in others:
        os.close(fd)
    leash.send(f"{child} {os.geteuid()}".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    fcntl.fcntl(leash, fcntl.F_SETFL, flags)  # the agent closes the leash once it has the status; exit normally, not by signal
    with contextlib.suppress(OSError):  # the agent has ended
        leash.send(str(status).encode())
    return status


def _exit_if_closed(leash: socket.socket) -> None:
    """Exit if the leash was closed before the kernel was asked to signal that."""
    try:
        leash.recv(1)
    except BlockingIOError:
        return
    sys.exit("the agent closed the leash")


if __name__ == "__main__":
    main()
