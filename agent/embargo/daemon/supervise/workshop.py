"""The compiler, seen from outside: what it is ordered to do, what its result is made from, and one run of it."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import embargo
from embargo.config import Config
from embargo.daemon.compile import sources
from embargo.daemon.compile.compiler import IMAGE, REPORT, new
from embargo.daemon.process.spawn import Spawn
from embargo.daemon.supervise import surroundings
from embargo.daemon.supervise.surroundings import Surroundings
from embargo.errors import ConfigError, Problem
from embargo.lists import image, policy
from embargo.lists.policy import App, Class

COMPILE = 120.0  # seconds for one compile
MAX_ANSWER = 64 << 20  # octets: every line of every list may be a problem to tell


class Hindered(ConfigError):
    """Nothing is wrong with the files, as far as is known: the machine was in the way, and may not be later."""


def order(settings: Config, around: Surroundings) -> dict[str, Any]:
    """What a compiler needs to know of the configuration and the machine."""
    return {"config": settings.text, "file": settings.file, "protected": surroundings.protected(settings, around)}


def fingerprint(settings: Config, around: Surroundings, files: sources.Snapshot) -> str:
    """Of everything a generation is made from: this program, the configuration, the files, the addresses to spare."""
    made_from = [embargo.__version__, image.VERSION, order(settings, around), sorted(files)]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def material(settings: Config, around: Surroundings, files: sources.Snapshot) -> str:
    """Of everything an image is made from: less than a generation, whose switchboard and settings are apart from it."""
    lists = [entry for entry in files if entry[0] != settings.file]
    made_from = [
        embargo.__version__, image.VERSION, settings.lists.apps, settings.lists.allow, settings.lists.block, settings.dns.hosts,
        settings.dns.tls_ca, settings.policy.shared, surroundings.protected(settings, around), sorted(lists),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def switched(old: dict[str, Any], classes: Sequence[Class], settings: Config) -> dict[str, Any]:
    """The report of the same image under other settings. ConfigError when these name an app that is not there."""
    apps = {told["id"]: App(told["id"], told["name"], default=told["default"]) for told in old["apps"]}
    if unknown := tuple(sources.unknown_apps(settings, apps)):
        raise ConfigError(unknown)
    chosen = settings.policy

    def told(about: dict[str, Any]) -> dict[str, Any]:
        functions = {
            name: {**counted, "on": chosen.class_on(apps[about["id"]], name)} for name, counted in about["functions"].items()
        }
        return {**about, "on": any(each["on"] for each in functions.values()), "functions": functions}

    board = policy.select(tuple(apps.values()), classes, chosen)
    return {**old, "switchboard": list(map(int, board.actions)), "apps": list(map(told, old["apps"]))}


async def run(spawn: Spawn, order: dict[str, Any]) -> dict[str, Any]:
    """One order to one compiler process. Hindered when it does not answer as it should, OSError when there can be none.

    Of the order's `directory` it gets the two files to fill, no more: from a directory's descriptor `..` leads out of any
    sandbox.
    """
    with contextlib.ExitStack() as held:

        def opened(fd: int) -> int:
            held.callback(os.close, fd)
            return fd

        fds = [opened(os.memfd_create(name, os.MFD_CLOEXEC)) for name in ("order", "answer", "complaints")]
        orders, answer, complaints = fds
        with open(orders, "wb", closefd=False) as file:
            file.write(json.dumps(order).encode())
        os.lseek(orders, 0, os.SEEK_SET)
        if "directory" in order:
            fds += [opened(new(f"{order['directory']}/{name}")) for name in (IMAGE, REPORT)]
        process = await spawn("compiler", fds)
        try:
            status = await asyncio.wait_for(process.wait(), COMPILE)
            told = _answer(_content(answer))
        except TimeoutError:
            process.kill()
            await process.wait()
            hint = "are the lists too large?"
            raise Hindered([Problem("compiler", 0, f"it did not end in {COMPILE:.0f} s", hint)]) from None
        except (ValueError, RecursionError):
            last = _content(complaints).decode(errors="replace").strip().rpartition("\n")[2]
            raise Hindered([Problem("compiler", 0, f"it ended with status {status}: {last}", "")]) from None
        finally:
            process.kill()
    return told


def _answer(data: bytes) -> dict[str, Any]:
    """What a compiler says, of whom nobody knows what the lists have made of it. ValueError."""
    match json.loads(data):
        case {"digest": str()} | {"matching": list()} as told:
            return dict(told)
        case {"errors": list() as errors} as told if all(map(_is_problem, errors)):
            return dict(told)
    raise ValueError("no answer")


def _is_problem(value: Any) -> bool:
    match value:
        case [str(), int(), str(), str()]:
            return True
    return False


def _content(fd: int) -> bytes:
    return os.pread(fd, min(os.fstat(fd).st_size, MAX_ANSWER), 0)
