"""Reads the files that a configuration names: lists, app directories, hosts files and certificates.

Each file is opened once, without blocking, and checked through its descriptor: it must be a regular file of a trusted owner,
writable by its owner only, not too large, and no link out of its directory. A file that fails a check or is not a list is an
error, and one error makes the whole load fail, so that the generation in force stays. A bad line is only a problem: it is
skipped.
"""

import contextlib
import difflib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple

from embargo import checks, names
from embargo.config import Config, unknown_apps
from embargo.daemon.host import watched
from embargo.daemon.host.authorities import certificates
from embargo.errors import BadValue, ConfigError, ListError, Problem, printable
from embargo.lists import lists, policy
from embargo.lists.lists import Guard
from embargo.lists.policy import App, Level, List, Source
from embargo.names import Name

SETTLED_SECONDS = 0.25  # without a change after which a file is taken as completely written
MAX_TRIES = 12  # of waiting for that
MAX_HOSTS = 200_000  # names of all hosts files: each resolver has them in memory, twice during a reload


class Loaded(NamedTuple):
    """The content of all files of a policy, and the problems of skipped lines."""

    apps: tuple[App, ...]
    local: tuple[List, ...]
    hosts: dict[str, list[str]]  # name → addresses
    problems: tuple[Problem, ...]
    authorities: str = ""  # CA certificates in PEM for upstreams over TLS; empty: those that the system trusts

    @property
    def lists(self) -> tuple[List, ...]:
        """All lists: the local ones, and those of the apps."""
        return (*self.local, *(list_ for app in self.apps for list_ in app.lists))


@dataclass(slots=True)
class _Load:
    """State of one load: trusted owners (user ids), checks of lines, errors and problems so far."""

    owners: frozenset[int]
    guard: Guard
    errors: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def load(config: Config, guard: Guard) -> Loaded:
    """Read all files. ConfigError with all files that cannot be used, and all unknown app ids in the configuration."""
    work = _Load(_owners(config), guard)
    apps: dict[str, App] = {}
    for directory in config.lists.apps:
        for app in _apps(directory, work):
            if app.default is None:  # if a replacement does not set `default`, that of the replaced app applies
                app = replace(app, default=app.id in apps and apps[app.id].default)
            apps[app.id] = app
    local = tuple(_local_lists(config, work))
    hosts: dict[str, list[str]] = {}
    for path in config.dns.hosts:
        _hosts(path, hosts, work)
    authorities = _authorities(config.dns.tls_ca, work) if config.dns.tls_ca else ""
    work.errors += unknown_apps(config, apps)
    if not apps and not work.errors:
        named = ", ".join(config.lists.apps)
        line = config.line("lists", "apps")
        work.errors.append(Problem(config.file, line, f"lists.apps: no app in {named}", "name the catalogue's directory"))
    if work.errors:
        raise ConfigError((*work.errors, *work.problems))
    ordered = tuple(apps[key] for key in sorted(apps))
    loaded = Loaded(ordered, local, hosts, (), authorities)
    return loaded._replace(problems=(*work.problems, *(p for list_ in loaded.lists for p in list_.problems)))


def _owners(config: Config) -> frozenset[int]:
    """Trusted owners (user ids): root, this process, the agent, and the owner of the configuration, who chooses the lists."""
    owners = {0, os.geteuid()}
    for path in (config.file, config.state.dir):
        with contextlib.suppress(OSError):
            owners.add(os.stat(path).st_uid)
    return frozenset(owners)


def read(path: str, owners: frozenset[int], *, below: str = "") -> bytes:
    """The content of a trusted regular file. ListError. `below`: the directory that a symbolic link must not leave."""

    def refuse(message: str, hint: str) -> ListError:
        return ListError(Problem(path, 0, message, hint))

    if below and os.path.commonpath((os.path.realpath(path), os.path.realpath(below))) != os.path.realpath(below):
        raise refuse(f"the link leads out of {below}", "put the file itself there")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise refuse(f"it cannot be read: {error.strerror}", "the agent's user needs permission to read it") from None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("it is not a regular file", "a list is a text file")
        if status.st_uid not in owners:
            raise refuse(
                f"it belongs to user {status.st_uid}", "it must belong to root or to the configuration's owner: chown it"
            )
        if status.st_mode & 0o022:
            raise refuse("users other than its owner can write it", f"forbid that: chmod go-w {path}")
        if status.st_size > lists.MAX_FILE:
            raise refuse(f"it has {status.st_size} octets", f"a list may have {lists.MAX_FILE}")
        content = _whole(file)
        if content is None:
            raise refuse("it is being written to all the time", "write to another file, and rename it when it is complete")
        return content


def _whole(file: BinaryIO) -> bytes | None:
    """The content of a file, once it no longer changes; None if it keeps changing. Half a list would block too little."""
    for _ in range(MAX_TRIES):
        before = os.fstat(file.fileno())
        file.seek(0)
        content = file.read(lists.MAX_FILE + 1)
        if not 0 <= time.time() - before.st_mtime <= SETTLED_SECONDS and _unchanged(file, before):
            return content  # a modification time in the future (the clock was set back) is not waited for
        time.sleep(SETTLED_SECONDS)
        if _unchanged(file, before):
            return content
    return None


def _unchanged(file: BinaryIO, before: os.stat_result) -> bool:
    now = os.fstat(file.fileno())
    return (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size)


def _apps(directory: str, work: _Load) -> Iterator[App]:
    try:
        children = sorted(os.listdir(directory))
    except FileNotFoundError:
        work.problems.append(Problem(directory, 0, "the directory does not exist", "create it or remove it from lists.apps"))
        return
    except OSError as error:
        hint = "the agent's user needs permission to read it"
        work.errors.append(Problem(directory, 0, f"the directory cannot be read: {error.strerror}", hint))
        return
    if not _trusted_directory(directory, work):
        return
    for name in children:
        path = f"{directory}/{name}"
        if not name.startswith(".") and os.path.isdir(path):
            app = _app(path, name, directory, work)
            if app is not None:
                yield app


def _trusted_directory(path: str, work: _Load) -> bool:
    """Whether only trusted users can write to a directory, and thus replace its files; otherwise an error is added."""
    status = os.stat(path)
    if status.st_uid not in work.owners:
        hint = "it must belong to root or to the configuration's owner: chown it"
        work.errors.append(Problem(path, 0, f"the directory belongs to user {status.st_uid}", hint))
    elif status.st_mode & 0o022:
        hint = f"forbid that: chmod go-w {path}"
        work.errors.append(Problem(path, 0, "users other than its owner can write to the directory", hint))
    else:
        return True
    return False


def _app(path: str, name: str, directory: str, work: _Load) -> App | None:
    file = f"{path}/app.toml"
    if not _trusted_directory(path, work):
        return None
    if not os.path.lexists(file):
        work.problems.append(Problem(path, 0, "the directory has no app.toml", "an app needs one with its id and name"))
        return None
    try:
        app = lists.parse_app(read(file, work.owners, below=directory), file, name)
    except ListError as error:
        work.errors.append(error.problem)
        return None
    except ConfigError as error:
        work.errors += error.problems
        return None
    guard = replace(work.guard, single_registrant=frozenset(map(names.from_text, app.single_registrant)))
    if (
        app.id == policy.BYPASS
    ):  # it lists public resolvers, maybe our upstream, to which only our own queries pass (ruleset.Own)
        guard = replace(guard, protected=tuple(item for item in guard.protected if item[1] != lists.UPSTREAM))
    app_lists = [
        list_
        for child in sorted(os.listdir(path))
        if child.endswith(".list") and not child.startswith(".")
        for list_ in _app_list(f"{path}/{child}", child, app, directory, guard, work)
    ]
    return replace(app, lists=tuple(app_lists))


def _app_list(path: str, child: str, app: App, directory: str, guard: Guard, work: _Load) -> Iterator[List]:
    function, _, shared = child.removesuffix(".list").partition(".")
    functions = policy.BYPASS_FUNCTIONS if app.id == policy.BYPASS else policy.FUNCTIONS
    if function not in functions or shared not in ("", "shared"):
        near = difflib.get_close_matches(function, functions, 1)
        meant = f"did you mean {near[0]}.list? " if near else ""
        problem = Problem(path, 0, f'"{function}" is not a function', f"{meant}functions are {', '.join(functions)}")
        work.problems.append(problem)
        return
    source = Source(f"{app.id}/{child}", Level.APPS, app.id, function, bool(shared))
    yield from _parse(path, source, directory, guard, work)


def _parse(path: str, source: Source, directory: str, guard: Guard, work: _Load) -> Iterator[List]:
    try:
        yield lists.parse(read(path, work.owners, below=directory), file=path, source=source, guard=guard)
    except ListError as error:
        work.errors.append(error.problem)


def _local_lists(config: Config, work: _Load) -> Iterator[List]:
    for name, level, configured in (("allow", Level.ALLOW, config.lists.allow), ("block", Level.BLOCK, config.lists.block)):
        for path, shown in (
            (configured, os.path.basename(configured)),
            (watched.local_path(config, name), f"{watched.LOCAL}/{name}.list"),
        ):
            if os.path.lexists(path):  # both are optional
                source = Source(shown, level, "local", name, shared=False)
                yield from _parse(path, source, os.path.dirname(path), work.guard, work)


def _hosts(path: str, hosts: dict[str, list[str]], work: _Load) -> None:
    """Read a hosts file: per line, an address and its names (hosts(5))."""
    try:
        text = read(path, work.owners).decode()
    except ListError as error:
        work.errors.append(error.problem)
        return
    except UnicodeDecodeError:
        work.errors.append(Problem(path, 0, "it is not UTF-8", "save the file as UTF-8"))
        return
    problems: list[Problem] = []
    left_out = 0
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        address, *aliases = line.partition("#")[0].split() or [""]
        if not address:
            continue
        try:
            lists.address_to_int(address)
        except ValueError:
            shown = printable(line.strip()[:80])
            problems.append(Problem(path, number, f'"{shown}" is not a hosts line', "write: address name …"))
            continue
        for alias in aliases:
            try:
                name = names.to_text(checks.name(alias))
            except BadValue as refused:
                hint = _WILDCARD_HINT if "*" in alias else refused.hint
                problems.append(Problem(path, number, f'"{printable(alias[:80])}" {refused.message}', hint))
                continue
            if name not in hosts and len(hosts) >= MAX_HOSTS:
                left_out += 1
            else:
                hosts.setdefault(name, []).append(address)
    if left_out:
        message = f"{left_out} names are left out: all hosts files together may have {MAX_HOSTS}"
        work.problems.append(Problem(path, 0, message, "name files with names to block in lists.block"))
    work.problems += problems[: lists.MAX_PROBLEMS]
    if len(problems) > lists.MAX_PROBLEMS:
        message = f"{len(problems) - lists.MAX_PROBLEMS} more names and lines cannot be used"
        work.problems.append(Problem(path, 0, message, "is this a hosts file? Its lines are: address name …"))


_WILDCARD_HINT = "a hosts file has whole names: write each one, or name the servers of the zone in dns.forward"


def _authorities(path: str, work: _Load) -> str:
    try:
        return certificates(read(path, work.owners).decode(errors="replace"))
    except ListError as error:
        work.errors.append(error.problem)
    except ValueError as error:
        work.errors.append(Problem(path, 0, str(error), "dns.tls_ca names a file in PEM: -----BEGIN CERTIFICATE-----"))
    return ""


def neighbours(apps: Iterable[App]) -> Iterator[tuple[App, Name]]:
    """(app, neighbour) for all neighbours: names that must keep working although the app is blocked."""
    for app in apps:
        for text in app.neighbours:
            yield app, names.from_text(text)
