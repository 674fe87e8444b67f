"""The files that a generation depends on, and snapshots of them that show whether they have changed."""

import os
import stat
from collections.abc import Iterable, Iterator

from embargo.config import Config

LOCAL = "local"  # directory in [state] dir with the files that `block`, `allow`, `forget` and `pause` write

Snapshot = frozenset[tuple[str, int, int, int]]


def local_path(config: Config, name: str) -> str:
    """The path of the agent's own list; `name`: allow or block."""
    return f"{config.state.dir}/{LOCAL}/{name}.list"


def paths(config: Config) -> tuple[str, ...]:
    """The files and directories whose content a generation depends on."""
    return (
        config.file, *config.lists.apps, config.lists.allow, config.lists.block, *config.dns.hosts,
        *(local_path(config, name) for name in ("allow", "block")),
        *([config.dns.tls_ca] if config.dns.tls_ca else []),
    )  # fmt: skip


def snapshot(paths: Iterable[str]) -> Snapshot:
    """(path, inode, size, mtime in ns) of each file at and below the paths, and an entry for its mode and owner.

    If two snapshots are equal, the content of the files is the same.
    """
    return frozenset(entry for path in paths for entry in _entries(path, depth=3))


def _entries(path: str, depth: int) -> Iterator[tuple[str, int, int, int]]:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            yield path, status.st_ino, status.st_mode, status.st_uid
            for name in os.listdir(path) if depth else ():
                if not name.startswith("."):
                    yield from _entries(f"{path}/{name}", depth - 1)
        else:
            yield path, status.st_ino, status.st_size, status.st_mtime_ns
            yield f"{path}:mode", status.st_mode, status.st_uid, 0
    except OSError:
        return
