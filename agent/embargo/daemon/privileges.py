"""Giving up power: who a process is and which capabilities it keeps (capabilities(7))."""

import ctypes
import os
import struct
from collections.abc import Sequence

CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_ADMIN = 2, 12, 21
_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 8, 38, 47, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def effective() -> frozenset[int]:
    """The capabilities in force in this process."""
    header = struct.pack("<II", _VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _call(_libc.capget(header, data), "capget")
    words = struct.unpack("<6I", data.raw)
    bits = words[0] | words[3] << 32
    return frozenset(n for n in range(64) if bits >> n & 1)


def keep(capabilities: Sequence[int]) -> None:
    """Keep these capabilities of those held, effective and permitted, and nothing else, now and through any exec."""
    bits = sum(1 << n for n in set(capabilities) & effective())
    low, high = bits & 0xFFFFFFFF, bits >> 32
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("<II", _VERSION_3, 0)
    _call(_libc.capset(header, struct.pack("<6I", low, low, 0, high, high, 0)), "capset")
    _call(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def become(uid: int, gid: int) -> None:
    """Run as this user and group, with no capability left."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    keep(())
