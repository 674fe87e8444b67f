"""What all verbs share: common options, exit statuses, the configuration, asking the agent.

Most runs of `embargo` ask a running agent one thing, so this module and `verbs` import only what that needs; a verb that
needs more imports it when it runs.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import click

from embargo import config
from embargo.cli import show
from embargo.config import Config
from embargo.daemon.ask import client
from embargo.daemon.ask.orders import GetApps
from embargo.errors import ConfigError, EmbargoError, Problem
from embargo.records import Answer, Order

DEFAULT = "/etc/embargo/embargo.toml"
NO, USAGE = 1, 2  # exit statuses: a negative answer or a failed request; an unusable command line or configuration
SOCKET = ("state", "runtime")  # the key that decides where a running agent is asked


class Verb(click.Command):
    """A subcommand with -c, and --json if it `reads`. Turns each EmbargoError into a message and an exit status."""

    def __init__(self, *args: Any, reads: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if reads:
            self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
        named: dict[str, Any] = {"metavar": "FILE", "help": "The configuration file."}
        self.params.append(click.Option(["-c", "--config", "file"], default=DEFAULT, show_default=True, **named))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; an EmbargoError becomes a message and an exit status."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            fail(str(error), USAGE)
        except EmbargoError as error:
            fail(str(error), NO)
        except BrokenPipeError:  # the reader has gone: discard what Python would still flush at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NO)


def fail(text: str, status: int) -> NoReturn:
    """Print an error and exit."""
    complain(text.splitlines())
    sys.exit(status)


def complain(lines: Iterable[object]) -> None:
    """Print lines on standard error."""
    for line in lines:
        print(show.clean(line), file=sys.stderr)


def warn(problems: Iterable[Problem]) -> None:
    """Print problems on standard error, as warnings."""
    complain(f"warning: {problem}" for problem in problems)


# ── the configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


def read(file: str) -> bytes:
    """The configuration file's content. Raises ConfigError."""
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        hint = "name one with -c FILE" if file == DEFAULT else "check the path"
        raise ConfigError([Problem(file, 0, f"cannot be read: {error.strerror}", hint)]) from None


def settings(file: str) -> Config:
    """The configuration, for verbs that need all of it. Raises ConfigError."""
    return config.parse(read(file), os.path.abspath(file))


def usable(file: str, key: tuple[str, str]) -> tuple[Config, tuple[Problem, ...]]:
    """The usable part of the configuration and its problems, for verbs that need a single (section, key).

    A mistake in the file must not prevent asking an agent that still runs with the previous content. Raises ConfigError if
    the key's own value is unknown: with -c FILE, its default may belong to another agent.
    """
    path, text = os.path.abspath(file), read(file)
    try:
        reading = config.read(text, path)
    except ConfigError as error:
        if file != DEFAULT:
            raise
        return config.default(path), error.problems
    if file != DEFAULT and reading.problems and key not in reading.written:
        raise ConfigError(reading.problems)
    return reading.config, reading.problems


# ── asking a running agent ───────────────────────────────────────────────────────────────────────────────────────────────


def ask(file: str, request: Order[Answer]) -> Answer:
    """The agent's answer; a refusal ends the program."""
    chosen, problems = usable(file, SOCKET)
    warn(problems)
    return answer(chosen, request)


def answer(chosen: Config, request: Order[Answer]) -> Answer:
    """As `ask`, with a configuration that was read already."""
    try:
        return client.ask(chosen.control, request)
    except client.RequestRefused as error:
        fail(str(error), USAGE if error.usage else NO)


def apps(file: str) -> list[str]:
    """What `app` can be in events: the ids of all apps, and words for what belongs to none.

    From the agent, or, where none runs, from the directories of apps.
    """
    chosen, _ = usable(file, SOCKET)
    try:
        found = [app.id for app in client.ask(chosen.control, GetApps()).apps]
    except client.ControlError:
        found = [path.parent.name for directory in chosen.lists.apps for path in Path(directory).glob("*/app.toml")]
    return ["local", "learnt", "listed", *found]


def ask_or(file: str, offline: Callable[[Config], Answer], request: Order[Answer]) -> Answer:
    """The agent's answer, or `offline` of the configuration where no agent runs."""
    chosen, problems = usable(file, SOCKET)
    try:
        answer = client.ask(chosen.control, request)
    except client.NotRunning:
        if problems:
            raise ConfigError(problems) from None
        return offline(chosen)
    except client.RequestRefused as error:
        fail(str(error), USAGE)
    warn(problems)
    return answer
