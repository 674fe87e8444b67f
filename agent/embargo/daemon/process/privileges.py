"""Giving up power: who a process is and which capabilities it keeps (capabilities(7))."""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Iterator, Sequence

CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_KILL, CAP_SETGID, CAP_SETUID = 0, 1, 2, 3, 5, 6, 7
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_ADMIN = 10, 12, 21

#: what the supervisor acts with: its files, its socket's group, its children, port 53
AT_HAND = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_KILL, CAP_NET_BIND_SERVICE)
#: what it may pick up: its children are started with these, and give up what they do not need
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
    """The capabilities in force in this process."""
    return _sets()[0]


def permitted() -> frozenset[int]:
    """The capabilities that this process may put in force."""
    return _sets()[1]


def _sets() -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Effective, permitted, inheritable."""
    header = struct.pack("<II", _VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _call(_libc.capget(header, data), "capget")
    words = struct.unpack("<6I", data.raw)
    effective_, permitted_, inheritable = (_numbers(words[n] | words[n + 3] << 32) for n in range(3))
    return effective_, permitted_, inheritable


def _numbers(bits: int) -> frozenset[int]:
    return frozenset(n for n in range(64) if bits >> n & 1)


def _set(effective_: Iterable[int], permitted_: Iterable[int], inheritable: Iterable[int]) -> None:
    sets = [sum(1 << n for n in set(each)) for each in (effective_, permitted_, inheritable)]
    words = [bits & 0xFFFFFFFF for bits in sets] + [bits >> 32 for bits in sets]
    _call(_libc.capset(struct.pack("<II", _VERSION_3, 0), struct.pack("<6I", *words)), "capset")


def settle() -> None:
    """Act with what is AT_HAND, keep what is IN_RESERVE, give up the rest, for every process started from now on too.

    Where we are not root, our children have what is ambient, which needs what is inheritable: both stay.
    """
    _, held, inheritable = _sets()
    kept = held & {*AT_HAND, *IN_RESERVE}
    for number in held - kept:
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # without CAP_SETPCAP it was bounded by whoever started us
    _set(kept & set(AT_HAND), kept, kept & inheritable)


@contextlib.contextmanager
def raised(capability: int) -> Iterator[None]:
    """Act with this one too, for a moment, if it may be had."""
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
    """Root reaches files as this user does, for a moment: with the user id go the capabilities that open everything."""
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
    """Keep these capabilities of those held, effective and permitted, and nothing else, now and through any exec."""
    _, held, inheritable = _sets()
    kept = held & set(capabilities)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if held or inheritable:  # capset may be forbidden where there is nothing to give up
        _set(kept, kept, ())
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def shut_off() -> None:
    """Let no other process of the same user look into this one or change it (ptrace(2), "access mode checking")."""
    _call(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")


def become(uid: int, gid: int) -> None:
    """Run as this user and group, with no capability left."""
    if CAP_SETUID in effective():
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    keep(())
