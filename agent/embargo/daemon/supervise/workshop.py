"""The supervisor's side of the compiler: digests of its input, and one run of a compiler process."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace

import embargo
from embargo import records
from embargo.config import Config, unknown_apps
from embargo.daemon.compile.orders import Rejected
from embargo.daemon.host import whole
from embargo.daemon.host.watched import Snapshot
from embargo.daemon.process.spawn import Spawn
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.errors import ConfigError, Problem
from embargo.lists import image, policy
from embargo.lists.policy import App, Class
from embargo.records import Answer, Order, RecordError
from embargo.report import AppReport, Report

COMPILER = 2  # incremented when the same lists compile to something else
COMPILE_SECONDS = 120.0  # for one run of a compiler
MAX_ANSWER = 64 << 20  # octets: every line of every list may have a problem


class TemporaryError(ConfigError):
    """A temporary failure of the machine (disk full, no descriptors left): the files may be right. Try again later."""


def fingerprint(settings: Config, around: Surroundings, files: Snapshot) -> str:
    """Digest of all input of a generation: program version, configuration, files, protected networks."""
    protected = surroundings.protected(settings, around)
    made_from = [embargo.__version__, COMPILER, image.VERSION, settings.text, settings.file, protected, sorted(files)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def material(settings: Config, around: Surroundings, files: Snapshot) -> str:
    """Digest of the input of an image alone, which does not depend on the switchboard and most settings."""
    lists = [entry for entry in files if entry[0] != settings.file]
    made_from = [
        embargo.__version__, COMPILER, image.VERSION, settings.lists.apps, settings.lists.allow, settings.lists.block,
        settings.dns.hosts, settings.dns.tls_ca, settings.policy.shared, surroundings.protected(settings, around),
        sorted(lists),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def switched(old: Report, classes: Sequence[Class], settings: Config, fingerprint: str) -> Report:
    """The report of the same image with other settings. ConfigError if these name an app that does not exist."""
    apps = {app.id: App(app.id, app.name, default=app.default) for app in old.apps}
    if unknown := tuple(unknown_apps(settings, apps)):
        raise ConfigError(unknown)
    chosen = settings.policy

    def reported(app: AppReport) -> AppReport:
        functions = {
            name: replace(function, on=chosen.class_on(apps[app.id], name)) for name, function in app.functions.items()
        }
        return replace(app, on=any(function.on for function in functions.values()), functions=functions)

    board = policy.select(tuple(apps.values()), classes, chosen)
    return replace(old, switchboard=board, apps=tuple(map(reported, old.apps)), fingerprint=fingerprint)


async def run(spawn: Spawn, order: Order[Answer], results: Sequence[str] = ()) -> Answer:
    """Give an order to a new compiler process. `results`: paths of the files that Compile fills, which must not exist yet.

    ConfigError if the configuration or a file cannot be used, TemporaryError if the compiler fails or takes too long, OSError
    if it cannot be started. The compiler gets descriptors of the files, not of their directory, since a descriptor of a
    directory gives access to its parents, whatever the sandbox.
    """
    answers = records.by_name((records.answer_of(type(order)), Rejected))
    with contextlib.ExitStack() as held:

        def opened(fd: int) -> int:
            held.callback(os.close, fd)
            return fd

        fds = [opened(os.memfd_create(name, os.MFD_CLOEXEC)) for name in ("order", "answer", "complaints")]
        orders, answer, complaints = fds
        with open(orders, "wb", closefd=False) as file:
            file.write(json.dumps(records.tagged(order)).encode())
        os.lseek(orders, 0, os.SEEK_SET)
        fds += [opened(whole.new(path)) for path in results]
        process = await spawn("compiler", fds)
        try:
            status = await asyncio.wait_for(process.wait(), COMPILE_SECONDS)
            answered = records.untagged(answers, records.from_json(_content(answer)))
        except TimeoutError:
            process.kill()
            await process.wait()
            hint = "are the lists too large?"
            raise TemporaryError([Problem("compiler", 0, f"it did not end in {COMPILE_SECONDS:.0f} s", hint)]) from None
        except (ValueError, RecordError):
            last = _content(complaints).decode(errors="replace").strip().rpartition("\n")[2]
            raise TemporaryError([Problem("compiler", 0, f"it ended with status {status}: {last}", "")]) from None
        finally:
            process.kill()
    if isinstance(answered, Rejected):
        raise ConfigError(answered.problems)
    made: Answer = answered
    return made


def _content(fd: int) -> bytes:
    return os.pread(fd, min(os.fstat(fd).st_size, MAX_ANSWER), 0)
