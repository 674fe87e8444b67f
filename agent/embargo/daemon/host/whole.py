"""Atomic writes: after a crash or a power cut, a file has either its old or its new content."""

import os
from collections.abc import Mapping

CHUNK = 1 << 18  # octets per write: while the kernel copies them, this processor handles no packet


def replace(contents: Mapping[str, bytes], mode: int) -> None:
    """Replace the content of files. `contents`: by path. OSError if there is no room for all of them: then none is replaced."""
    temporaries = {path: "{}/.{}".format(*os.path.split(path)) for path in contents}
    for path, temporary in temporaries.items():
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(contents[path])
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
    for path, temporary in temporaries.items():
        os.replace(temporary, path)
    for directory in {os.path.dirname(path) for path in contents}:
        sync(directory)


def new(path: str) -> int:
    """Create a file; its descriptor for `fill`. FileExistsError, OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)


def fill(fd: int, data: bytes) -> None:
    """Write the data, sync it to the disk, and close the descriptor. OSError."""
    with open(fd, "wb", buffering=0) as file:
        for at in range(0, len(data), CHUNK):
            file.write(memoryview(data)[at : at + CHUNK])
        os.fsync(fd)


def sync(directory: str) -> None:
    """Sync a directory to the disk, so that renames in it are permanent. OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
