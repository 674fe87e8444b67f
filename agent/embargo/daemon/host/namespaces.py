"""Network namespaces (network_namespaces(7)): a call in one of them, and a new one. Each in a thread of its own.

setns(2) and unshare(2) change the namespace of the calling thread alone, so the other threads stay where they are.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def within(namespace: int, work: Callable[[], T]) -> T:
    """Call something in the network namespace of this descriptor; sockets that it makes stay there. OSError, and its errors."""

    def enter() -> T:
        if _libc.setns(namespace, _CLONE_NEWNET):
            raise _error()
        return work()

    return _in_thread(enter)


def new() -> int:
    """A descriptor of a new network namespace, which lasts as long as the descriptor or a socket in it. OSError."""

    def unshare() -> int:
        if _libc.unshare(_CLONE_NEWNET):
            raise _error()
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _in_thread(unshare)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def _in_thread(work: Callable[[], T]) -> T:
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
