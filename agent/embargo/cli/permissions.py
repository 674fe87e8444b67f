"""Files that the configuration names and the agent's user cannot read. `check` looks for them when root runs it."""

import grp
import os
import pwd
from collections.abc import Iterator

from embargo.config import Config
from embargo.daemon.host import watched
from embargo.daemon.process import privileges
from embargo.errors import Problem


def unreadable(config: Config) -> Iterator[Problem]:
    """What root can read and the owner of [state] dir, the agent's user, cannot. Nothing unless root runs this."""
    needs = {privileges.CAP_SETUID, privileges.CAP_SETGID}
    try:
        user = pwd.getpwuid(os.stat(config.state.dir).st_uid)
    except (OSError, KeyError):
        return  # no agent has run yet
    if not user.pw_uid or os.geteuid() or not needs <= privileges.effective():
        return
    modes: dict[str, int] = {}
    for path in watched.paths(config):
        for step, mode in _needed(path, depth=2):
            modes[step] = modes.get(step, 0) | mode
    with privileges.seeing_as(user.pw_uid, user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)):
        closed = [path for path, mode in modes.items() if not os.access(path, mode, effective_ids=True)]
    for path in closed:
        if not any(path.startswith(f"{other}/") for other in closed):  # the topmost one is enough
            yield _problem(path, modes[path], user)


def _needed(path: str, depth: int) -> Iterator[tuple[str, int]]:
    """(path, access mode that is needed) of the directories above a path, and of everything at and below it."""
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return
    above = os.path.dirname(real)
    while above != os.path.dirname(above):
        yield above, os.X_OK
        above = os.path.dirname(above)
    if not os.path.isdir(real):
        yield real, os.R_OK
        return
    yield real, os.R_OK | os.X_OK
    for name in sorted(os.listdir(real)) if depth else ():
        if not name.startswith("."):
            yield from _needed(f"{real}/{name}", depth - 1)


def _problem(path: str, mode: int, user: pwd.struct_passwd) -> Problem:
    agent = f"{user.pw_name}, the user that the agent runs as,"
    if mode == os.X_OK:
        return Problem(path, 0, f"{agent} cannot reach the files in it", f"chmod o+x {path}, or move the files")
    try:
        group = grp.getgrgid(user.pw_gid).gr_name
    except KeyError:
        group = str(user.pw_gid)
    letters = "rx" if mode & os.X_OK else "r"
    return Problem(path, 0, f"{agent} cannot read it", f"chgrp {group} {path} && chmod g+{letters} {path}")
