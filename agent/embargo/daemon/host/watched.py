"""The files that a generation depends on, and a snapshot that tells whether their content changed."""

import os
import stat
from collections.abc import Iterable, Iterator

from embargo.config import Config

LOCAL = "local"  # the directory below [state] dir with what `block`, `allow`, `forget` and `pause` wrote

Snapshot = frozenset[tuple[str, int, int, int]]


def local_path(config: Config, name: str) -> str:
    """The agent's own `allow` or `block` list."""
    return f"{config.state.dir}/{LOCAL}/{name}.list"


def paths(config: Config) -> tuple[str, ...]:
    """The files and directories whose content a generation depends on."""
    return (
        config.file, *config.lists.apps, config.lists.allow, config.lists.block, *config.dns.hosts,
        *(local_path(config, name) for name in ("allow", "block")),
        *([config.dns.tls_ca] if config.dns.tls_ca else []),
    )  # fmt: skip


def snapshot(paths: Iterable[str]) -> Snapshot:
    """(path, inode, size, mtime) of every file at and below the paths, and who may write it.

    Files whose snapshots are equal have the same content.
    """
    return frozenset(entry for path in paths for entry in _entries(path, depth=3))


def _entries(path: str, depth: int) -> Iterator[tuple[str, int, int, int]]:
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            yield path, found.st_ino, found.st_mode, found.st_uid
            for name in os.listdir(path) if depth else ():
                if not name.startswith("."):
                    yield from _entries(f"{path}/{name}", depth - 1)
        else:
            yield path, found.st_ino, found.st_size, found.st_mtime_ns
            yield f"{path}:mode", found.st_mode, found.st_uid, 0
    except OSError:
        return
