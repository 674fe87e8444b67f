"""Dropping privileges: the user of a process, and the capabilities that it keeps (capabilities(7))."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID = 0, 1, 2, 3, 5, 6, 7
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_ADMIN = 10, 12, 21

#: effective in the supervisor: for its files, its socket's group, its children, port 53
AT_HAND = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_NET_BIND_SERVICE)
#: permitted only: children are started with these and drop those that they do not need
IN_RESERVE = (CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SETGID, CAP_SETUID)
_VERSION_3 = 0x20080522
_PR_CAPBSET_DROP = 24
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 4, 38, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def effective() -> frozenset[int]:
    """The effective capabilities of this process."""
    return _sets()[0]


def permitted() -> frozenset[int]:
    """The permitted capabilities of this process: those that it may make effective."""
    return _sets()[1]


def _sets() -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """(effective, permitted, inheritable) capabilities. OSError."""
    header = struct.pack("<II", _VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _call(_libc.capget(header, data), "capget")
    words = struct.unpack("<6I", data.raw)
    effective_, permitted_, inheritable = (_numbers(words[n] | words[n + 3] << 32) for n in range(3))
    return effective_, permitted_, inheritable


def _numbers(bits: int) -> frozenset[int]:
    return frozenset(n for n in range(64) if bits >> n & 1)


def _set(effective_: Iterable[int], permitted_: Iterable[int], inheritable: Iterable[int]) -> None:
    sets = [sum(1 << n for n in set(capabilities)) for capabilities in (effective_, permitted_, inheritable)]
    words = [bits & 0xFFFFFFFF for bits in sets] + [bits >> 32 for bits in sets]
    _call(_libc.capset(struct.pack("<II", _VERSION_3, 0), struct.pack("<6I", *words)), "capset")


def settle() -> None:
    """Make AT_HAND effective, keep IN_RESERVE permitted, and drop all others, also for processes started from now on.

    The ambient and inheritable sets stay: without root, children get their capabilities from the ambient set.
    """
    _, held, inheritable = _sets()
    kept = held & {*AT_HAND, *IN_RESERVE}
    for number in held - kept:
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails without CAP_SETPCAP; then the service manager has set the bound
    _set(kept & set(AT_HAND), kept, kept & inheritable)


@contextlib.contextmanager
def raised(capability: int) -> Iterator[None]:
    """Make this capability effective within the context, if it is permitted."""
    before, held, inheritable = _sets()
    if capability in before or capability not in held:
        yield
        return
    _set(before | {capability}, held, inheritable)
    try:
        yield
    finally:
        _set(before, held, inheritable)


@contextlib.contextmanager
def seeing_as(uid: int, gid: int, groups: Iterable[int]) -> Iterator[None]:
    """Within the context, root has the file access of this user: changing the effective user id drops the capabilities that
    override file permissions (capabilities(7)).
    """
    before, own = os.getgroups(), os.getegid()
    try:
        os.setgroups([*groups])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(own)
        os.setgroups(before)


def keep(capabilities: Sequence[int]) -> None:
    """Keep only these of the permitted capabilities, effective and permitted, also after an exec. OSError."""
    _, held, inheritable = _sets()
    kept = held & set(capabilities)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if held or inheritable:  # a sandbox may forbid capset; it is not needed if there is nothing to drop
        _set(kept, kept, ())
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def forbid_inspection() -> None:
    """Forbid other processes of the same user to read or change this one (ptrace(2), "access mode checking"). OSError."""
    _call(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")


def become(uid: int, gid: int) -> None:
    """Change to this user and group if CAP_SETUID allows it, and drop all capabilities. OSError."""
    if CAP_SETUID in effective():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    keep(())
