"""From disk to values: the list files, app directories, hosts files and certificates that a configuration names.

Every file is opened once, without blocking, and looked at through that descriptor: a regular file, of a trusted owner,
writable by its owner alone, not too large, and not a link that leaves its directory. A file that fails this or cannot be
a list is an error, and errors refuse the whole load: the generation in force stays. Bad lines are problems and cost
themselves alone.
"""

import contextlib
import difflib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple

from embargo import names
from embargo.config import Config, unknown_apps
from embargo.daemon.host import watched
from embargo.daemon.host.authorities import certificates
from embargo.errors import ConfigError, ListError, Problem
from embargo.lists import lists, policy
from embargo.lists.lists import Guard
from embargo.lists.policy import App, Level, List, Source
from embargo.names import Name

SETTLED = 0.25  # seconds without a change after which a file is whole
TRIES = 12  # how many times that is waited for
MAX_HOSTS = 1_000_000  # lines of a hosts file


class Loaded(NamedTuple):
    """Everything that a policy is made of, with the problems that cost no more than their line."""

    apps: tuple[App, ...]
    local: tuple[List, ...]
    hosts: dict[str, list[str]]
    problems: tuple[Problem, ...]
    authorities: str = ""  # certificates in PEM: who vouches for upstreams over TLS, if not those that the system trusts

    @property
    def lists(self) -> tuple[List, ...]:
        return (*self.local, *(list_ for app in self.apps for list_ in app.lists))


@dataclass(slots=True)
class _Load:
    """One load under way: whom to trust, what to guard against, what has been found wrong."""

    owners: frozenset[int]
    guard: Guard
    errors: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def load(config: Config, guard: Guard) -> Loaded:
    """Read it all. ConfigError with every file that cannot be used, and with app ids that do not exist."""
    work = _Load(_owners(config), guard)
    apps: dict[str, App] = {}
    for directory in config.lists.apps:
        for app in _apps(directory, work):
            if app.default is None:  # a replacement that does not say is on as what it replaces was, and not off by oversight
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
    found = Loaded(ordered, local, hosts, (), authorities)
    return found._replace(problems=(*work.problems, *(p for list_ in found.lists for p in list_.problems)))


def _owners(config: Config) -> frozenset[int]:
    """Root, ourselves, whoever owns the configuration (he could name other lists anyway), and the agent, if we are not it."""
    found = {0, os.geteuid()}
    for path in (config.file, config.state.dir):
        with contextlib.suppress(OSError):
            found.add(os.stat(path).st_uid)
    return frozenset(found)


def read(path: str, owners: frozenset[int], *, below: str = "") -> bytes:
    """The content of a trusted regular file. ListError otherwise. `below`: the directory that a link must not leave."""

    def refuse(message: str, hint: str) -> ListError:
        return ListError(Problem(path, 0, message, hint))

    if below and os.path.commonpath((os.path.realpath(path), os.path.realpath(below))) != os.path.realpath(below):
        raise refuse(f"the link leaves {below}", "put the file itself there")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise refuse(f"it cannot be read: {error.strerror}", "the agent's user needs permission to read it") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise refuse("it is not a regular file", "a list is a text file")
        if found.st_uid not in owners:
            raise refuse(
                f"it belongs to user {found.st_uid}", "it must belong to root or to the configuration's owner: chown it"
            )
        if found.st_mode & 0o022:
            raise refuse("others than its owner can write it", f"take that away: chmod go-w {path}")
        if found.st_size > lists.MAX_FILE:
            raise refuse(f"it has {found.st_size} octets", f"a list has at most {lists.MAX_FILE}")
        content = _whole(file)
        if content is None:
            raise refuse("it is being written all the time", "write another file, and give it this name when it is whole")
        return content


def _whole(file: BinaryIO) -> bytes | None:
    """What stands in a file that nobody is writing to. Half a list would let through what the other half names."""
    for _ in range(TRIES):
        before = os.fstat(file.fileno())
        file.seek(0)
        content = file.read(lists.MAX_FILE + 1)
        if not 0 <= time.time() - before.st_mtime <= SETTLED and _unchanged(file, before):
            return content  # a time to come, where the clock was set back, tells nothing; it is not waited for
        time.sleep(SETTLED)
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
        work.problems.append(Problem(directory, 0, "there is no such directory", "create it or take it out of lists.apps"))
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
    """Whoever can write a directory can replace what stands in it."""
    found = os.stat(path)
    if found.st_uid not in work.owners:
        hint = "it must belong to root or to the configuration's owner: chown it"
        work.errors.append(Problem(path, 0, f"the directory belongs to user {found.st_uid}", hint))
    elif found.st_mode & 0o022:
        hint = f"take that away: chmod go-w {path}"
        work.errors.append(Problem(path, 0, "others than its owner can write the directory", hint))
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
    if app.id == policy.BYPASS:  # it lists public resolvers, and only our own questions to one pass (ruleset.Own)
        guard = replace(guard, protected=tuple(item for item in guard.protected if item[1] != lists.UPSTREAM))
    found = [
        list_
        for child in sorted(os.listdir(path))
        if child.endswith(".list") and not child.startswith(".")
        for list_ in _app_list(f"{path}/{child}", child, app, directory, guard, work)
    ]
    return replace(app, lists=tuple(found))


def _app_list(path: str, child: str, app: App, directory: str, guard: Guard, work: _Load) -> Iterator[List]:
    function, _, shared = child.removesuffix(".list").partition(".")
    known = policy.BYPASS_FUNCTIONS if app.id == policy.BYPASS else policy.FUNCTIONS
    if function not in known or shared not in ("", "shared"):
        near = difflib.get_close_matches(function, known, 1)
        meant = f"did you mean {near[0]}.list? " if near else ""
        problem = Problem(path, 0, f'"{function}" is not a function', f"{meant}functions are {', '.join(known)}")
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
            if os.path.lexists(path):  # neither has to exist
                source = Source(shown, level, "local", name, shared=False)
                yield from _parse(path, source, os.path.dirname(path), work.guard, work)


def _hosts(path: str, hosts: dict[str, list[str]], work: _Load) -> None:
    """hosts(5): an address and its names a line."""
    try:
        text = read(path, work.owners).decode()
    except ListError as error:
        work.errors.append(error.problem)
        return
    except UnicodeDecodeError:
        work.errors.append(Problem(path, 0, "it is not UTF-8", "save the file as UTF-8"))
        return
    for number, line in enumerate(text.split("\n")[:MAX_HOSTS], start=1):
        address, *aliases = line.partition("#")[0].split() or [""]
        if not address:
            continue
        try:
            lists.address_to_int(address)
            found = [names.to_text(names.from_text(alias)) for alias in aliases]
        except ValueError:
            work.problems.append(Problem(path, number, f'"{line.strip()[:80]}" is not a hosts line', "write: address name …"))
            continue
        for name in found:
            hosts.setdefault(name, []).append(address)


def _authorities(path: str, work: _Load) -> str:
    try:
        return certificates(read(path, work.owners).decode(errors="replace"))
    except ListError as error:
        work.errors.append(error.problem)
    except ValueError as error:
        work.errors.append(Problem(path, 0, str(error), "dns.tls_ca names a file in PEM: -----BEGIN CERTIFICATE-----"))
    return ""


def neighbours(apps: Iterable[App]) -> Iterator[tuple[App, Name]]:
    """The names that must keep working, with the app that says so."""
    for app in apps:
        for text in app.neighbours:
            yield app, names.from_text(text)
