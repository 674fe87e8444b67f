"""What a start needs of this machine: directories that are ours, an event log, users; and nobody who has them already."""

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

FAILED = "failed-starts"  # in [state] runtime: how many in a row
FIRST_PAUSE, LAST_PAUSE = 0.1, 10.0  # seconds; doubled per start in a row that failed


class StartError(EmbargoError):
    """This machine does not let the agent start; the text says what would."""


def take(settings: Config, ledgers: str, store: Store, journal: Journal) -> list[int]:
    """Directories, the event log, and the locks that keep a second agent away: their descriptors. StartError.

    All that can refuse without harm. `ledgers`: a directory for the pages of children that count attempts.
    """
    state = settings.state
    try:
        os.makedirs(f"{state.dir}/{watched.LOCAL}", mode=0o750, exist_ok=True)
        os.makedirs(ledgers, mode=0o700, exist_ok=True)
        os.makedirs(state.runtime, mode=0o755, exist_ok=True)  # whoever may use the socket must reach it
        held = [_lock(directory) for directory in dict.fromkeys((state.dir, state.runtime))]
        store.prepare()
    except OSError as error:
        hint = _way_in(error, "[state] dir and runtime", (state.dir, state.runtime))
        raise StartError(f"{error.filename}: {error.strerror}; {hint}") from None
    try:
        journal.open()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk is emptied while we run
            hint = _way_in(error, "[log] events", (os.path.dirname(settings.log.events),))
            raise StartError(f"{error.filename}: {error.strerror}; {hint}") from None
    journal.note_lost(Account.take_unwritten(ledgers))
    return held


def _way_in(error: OSError, key: str, places: Sequence[str]) -> str:
    """What would make this place ours to write."""
    whom = _name(os.geteuid())
    if error.errno == errno.EROFS:  # most of the time the unit's own: ProtectSystem=strict
        at = next((each for each in places if os.path.commonpath((each, error.filename)) in (each, error.filename)), places[0])
        setting = f"`systemctl edit embargo`, [Service] ReadWritePaths={at}"
        return f"make {at}, owned by {whom}, and let the service write there: {setting}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"it must belong to {whom}, whom the agent runs as: chown -R it, or set {key} elsewhere"
    return f"make it, or set {key} elsewhere"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _lock(directory: str) -> int:
    """Hold a directory against a second agent. StartError when one has it."""
    held = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise StartError(f"another agent runs with {directory}; stop it, or set [state] dir and runtime elsewhere") from None
    return held


def warn_of_old_rules() -> None:
    """The firewall is off, but an earlier run may have left its rules (on_stop = "keep")."""
    if privileges.CAP_NET_ADMIN in privileges.effective():
        with contextlib.suppress(FirewallError):
            kernel = Nftables()
            if kernel.has_table(TABLE):
                log.warning("the rules of an earlier run are still in force: nft delete table inet %s removes them", TABLE)
            kernel.close()


def pause(runtime: str) -> float:
    """Seconds to wait after a start that failed: none after the first in a row, then ever more."""
    tries = 0
    with contextlib.suppress(OSError, ValueError):  # where nothing can be noted, nothing is waited for
        with contextlib.suppress(FileNotFoundError), open(f"{runtime}/{FAILED}", encoding="ascii") as file:
            tries = int(file.read(4))
        with open(f"{runtime}/{FAILED}", "w", encoding="ascii") as file:
            file.write(str(min(tries + 1, 100)))
    return min(FIRST_PAUSE * 2**tries, LAST_PAUSE) if tries else 0.0


def succeeded(runtime: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(f"{runtime}/{FAILED}")


def user(name: str) -> tuple[int, int]:
    """Whom the resolvers run as, or are to run as where their units decide."""
    for candidate in (name, "nobody"):
        try:
            found = pwd.getpwnam(candidate)
        except KeyError:
            log.info("there is no user %s: the user nobody takes its place", candidate)
        else:
            return found.pw_uid, found.pw_gid
    raise StartError(f'state.user: there is no user "{name}"; make it, or name another')


def group_id(name: str) -> int:
    """The control socket's group; our own where it does not exist."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return os.getegid()
