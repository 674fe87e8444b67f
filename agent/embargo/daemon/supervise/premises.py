"""Checks and locks before a start: state directories, event log, users; no second agent; a delay after failed starts."""

import contextlib
import errno
import fcntl
import grp
import logging
import os
import pwd
from collections.abc import Sequence

from embargo.config import Config
from embargo.daemon.host import watched
from embargo.daemon.host.nftables import Nftables
from embargo.daemon.log.journal import Journal
from embargo.daemon.process import privileges
from embargo.daemon.process.outbox import Account
from embargo.daemon.supervise.generations import Store
from embargo.errors import EmbargoError, FirewallError
from embargo.firewall.table import TABLE

log = logging.getLogger(__name__)

FAILED_STARTS = "failed-starts"  # file in [state] runtime: the number of failed starts in a row
FIRST_DELAY, LAST_DELAY = 0.1, 10.0  # seconds; doubled for each failed start in a row


class StartError(EmbargoError):
    """The agent cannot start on this machine as it is; the text says what to change."""


def prepare(settings: Config, ledgers: str, store: Store, journal: Journal) -> list[int]:
    """Create the directories, lock them against a second agent, and open the event log. Descriptors of the locks; StartError.

    Comes first in a start, because it can fail without having changed anything. `ledgers`: the directory for the pages in which
    children count attempts.
    """
    state = settings.state
    try:
        os.makedirs(f"{state.dir}/{watched.LOCAL}", mode=0o750, exist_ok=True)
        os.makedirs(ledgers, mode=0o700, exist_ok=True)
        os.makedirs(state.runtime, mode=0o755, exist_ok=True)  # users of the control socket must be able to reach it
        locks = [_lock(directory) for directory in dict.fromkeys((state.dir, state.runtime))]
        store.prepare()
    except OSError as error:
        hint = _hint(error, "[state] dir and runtime", (state.dir, state.runtime))
        raise StartError(f"{error.filename}: {error.strerror}; {hint}") from None
    try:
        journal.open()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # the agent runs with a full disk too: space may be freed meanwhile
            hint = _hint(error, "[log] events", (os.path.dirname(settings.log.events),))
            raise StartError(f"{error.filename}: {error.strerror}; {hint}") from None
    journal.note_lost(Account.take_unwritten(ledgers))
    return locks


def _hint(error: OSError, key: str, places: Sequence[str]) -> str:
    """What would make the directory of the error usable."""
    user = _name(os.geteuid())
    if error.errno == errno.EROFS:  # usually because of ProtectSystem=strict in the unit
        at = next(
            (place for place in places if os.path.commonpath((place, error.filename)) in (place, error.filename)), places[0]
        )
        setting = f"`systemctl edit embargo`, [Service] ReadWritePaths={at}"
        return f"create {at}, owned by {user}, and let the service write there: {setting}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"it must belong to {user}, the user of the agent: chown -R it, or set {key} elsewhere"
    return f"create it, or set {key} elsewhere"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _lock(directory: str) -> int:
    """Lock a directory, until the descriptor is closed. StartError if another agent has locked it."""
    lock = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StartError(f"another agent is using {directory}; stop it, or set [state] dir and runtime elsewhere") from None
    return lock


def warn_of_old_rules() -> None:
    """Without a firewall: log a warning if an earlier run has left its rules in the kernel (on_stop = "keep")."""
    if privileges.CAP_NET_ADMIN in privileges.effective():
        with contextlib.suppress(FirewallError):
            kernel = Nftables()
            if kernel.has_table(TABLE):
                log.warning(
                    "the firewall is off, but rules of an earlier run are in force; remove them with: nft delete table inet %s",
                    TABLE,
                )
            kernel.close()


def backoff(runtime: str) -> float:
    """Count a failed start. Seconds to wait before the agent exits: none for the first in a row, then doubled each time."""
    tries = 0
    with contextlib.suppress(OSError, ValueError):  # without the file there is no delay
        with contextlib.suppress(FileNotFoundError), open(f"{runtime}/{FAILED_STARTS}", encoding="ascii") as file:
            tries = int(file.read(4))
        with open(f"{runtime}/{FAILED_STARTS}", "w", encoding="ascii") as file:
            file.write(str(min(tries + 1, 100)))
    return min(FIRST_DELAY * 2**tries, LAST_DELAY) if tries else 0.0


def reset_backoff(runtime: str) -> None:
    """Forget the failed starts, after one that succeeded."""
    with contextlib.suppress(OSError):
        os.unlink(f"{runtime}/{FAILED_STARTS}")


def resolver_user(name: str) -> tuple[int, int]:
    """(user id, group id) for the resolvers; if they are units, the ones that they are expected to have. StartError."""
    for candidate in (name, "nobody"):
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            log.info("user %s does not exist; resolvers run as nobody", candidate)
        else:
            return entry.pw_uid, entry.pw_gid
    raise StartError(f'state.user: user "{name}" does not exist; create it, or name another')


def group_id(name: str) -> int:
    """The id of the control socket's group; the group of this process if it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return os.getegid()
