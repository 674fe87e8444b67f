"""The compiler, seen from outside: what it is ordered to do, what its result is made from, and one run of it."""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import embargo
from embargo import image, policy
from embargo.config import Config
from embargo.daemon import sources, surroundings
from embargo.daemon.surroundings import Surroundings
from embargo.errors import ConfigError, Problem
from embargo.policy import App, Class

COMPILE = 120.0  # seconds for one compile
POLITE = 3.0  # seconds in which it has the processor only when nobody else wants it; a change must not wait for ever


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


async def run(order: dict[str, Any]) -> dict[str, Any]:
    """One order to one compiler process. ConfigError when it does not answer as it should."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "embargo.daemon.compiler",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))  # no query waits for it, not even for a time slice
    enough = asyncio.get_running_loop().call_later(POLITE, _like_everybody, process)
    try:
        out, err = await asyncio.wait_for(process.communicate(json.dumps(order).encode()), COMPILE)
        answer: dict[str, Any] = json.loads(out)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ConfigError([Problem("compiler", 0, f"it did not end in {COMPILE:.0f} s", "are the lists too large?")]) from None
    except ValueError:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise ConfigError([Problem("compiler", 0, f"it ended with status {process.returncode}: {last}", "")]) from None
    finally:
        enough.cancel()
    return answer


def _like_everybody(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(OSError):  # it has ended, or may not; then it stays polite
        os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
