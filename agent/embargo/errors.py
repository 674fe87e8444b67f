"""Exceptions that cross modules, and text for people. Each class exists because some `except` treats it differently.

`EmbargoError` and its subclasses are expected failures, shown without a traceback. Modules have more of them of their own.
"""

from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple


class Problem(NamedTuple):
    """A mistake in a file of the administrator: where it is, what is wrong, and how to correct it."""

    file: str
    line: int  # 0: the file as a whole
    message: str
    hint: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return printable(f"{place}: {self.message}" + (f", {self.hint}" if self.hint else ""))


def printable(text: str) -> str:
    """Text for a terminal: control characters, which names and contents of files may have, are replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: 0:09:41."""
    return str(timedelta(seconds=round(seconds)))


def counted(number: int, thing: str) -> str:
    """A number of things as text: "1 name", "2 names"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


class BadValue(ValueError):
    """A value that cannot be used: what is wrong, and how to correct it. `config` and `lists`, which know the file and
    the line, make it a Problem; for all others it is a ValueError.
    """

    def __init__(self, message: str, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}, {hint}")


class EmbargoError(Exception):
    """The base class. `cli.verbs` prints it as an error message; a bug is any other exception, with its traceback."""


class ConfigError(EmbargoError):
    """The configuration, or files that it names, cannot be used. Has all problems, not only the first. A start exits with
    status 2, which systemd does not retry; a reload leaves the old generation in force.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ListError(EmbargoError):
    """A file that is not a list, or cannot be trusted. `sources` collects them and raises one ConfigError at the end."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class MessageError(EmbargoError):
    """A DNS message cannot be parsed. A query is answered with `rcode`; after a response another server is asked.

    `offset`: in octets, where it was found.
    """

    def __init__(self, rcode: int, offset: int) -> None:
        self.rcode = rcode
        self.offset = offset
        super().__init__(f"rcode {rcode} at octet {offset}")


class ImageError(EmbargoError):
    """A policy image is damaged or of another version. A start then compiles again; a rollback is refused."""


class FirewallError(EmbargoError):
    """The kernel refuses a firewall operation. The guardian reports it to the supervisor, which undoes the reload; at a
    start, the agent does not start.
    """

    def __init__(self, operation: str, reason: str) -> None:
        self.operation = operation
        self.reason = reason
        super().__init__(f"{operation}: {reason}")


def describe(error: EmbargoError | OSError) -> str:
    """The error as text for people, with the file if it concerns one."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
