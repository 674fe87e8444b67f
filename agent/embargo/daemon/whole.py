"""Files that are whole: the old content or the new, also through a power cut."""

import os


def replace(path: str, data: bytes, mode: int) -> None:
    """Put this in the place of what is there. OSError leaves the old content."""
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, mode)
        os.fsync(fd)
    os.replace(temporary, path)
    sync(directory)


def sync(directory: str) -> None:
    """What was renamed here stays so."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
