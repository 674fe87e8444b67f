"""Files that are whole: the old content or the new, also through a power cut."""

import os
from collections.abc import Mapping

CHUNK = 1 << 18  # octets written at once: the kernel takes no query on this processor while it copies them


def replace(contents: Mapping[str, bytes], mode: int) -> None:
    """Put these in the place of what is there, by path: all of them, or none where there is no room for one (OSError)."""
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
    """The descriptor of a file that did not exist before, to be filled."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)


def fill(fd: int, data: bytes) -> None:
    """Write all of it to the disk and close the file."""
    with open(fd, "wb", buffering=0) as file:
        for at in range(0, len(data), CHUNK):
            file.write(memoryview(data)[at : at + CHUNK])
        os.fsync(fd)


def sync(directory: str) -> None:
    """What was renamed here stays so."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
