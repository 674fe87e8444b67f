"""The few exception classes. A class exists because some `except` treats it differently."""

from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """Something an administrator wrote that cannot be used: where, what, and what would be right."""

    file: str
    line: int  # 0: the file as a whole
    message: str
    hint: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return printable(f"{place}: {self.message}" + (f", {self.hint}" if self.hint else ""))


def printable(text: str) -> str:
    """Text that people see, without what would move their cursor: files and what stands in them may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class Refused(ValueError):
    """A value that cannot be used: what is wrong, and what would be right. Whoever knows the place makes it a Problem."""

    def __init__(self, message: str, hint: str) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}, {hint}")


class EmbargoError(Exception):
    """The root of ours."""


class ConfigError(EmbargoError):
    """The operator wrote something wrong. Carries every problem, not the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ListError(EmbargoError):
    """A list file that must not replace its last good copy."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class MessageError(EmbargoError):
    """A peer sent a DNS message that cannot be used; `rcode` is what it deserves."""

    def __init__(self, rcode: int, offset: int) -> None:
        self.rcode = rcode
        self.offset = offset
        super().__init__(f"rcode {rcode} at octet {offset}")


class ImageError(EmbargoError):
    """A policy image that is damaged or of another version."""


class FirewallError(EmbargoError):
    """The kernel refused a change, or may not be asked."""

    def __init__(self, operation: str, reason: str) -> None:
        self.operation = operation
        self.reason = reason
        super().__init__(f"{operation}: {reason}")


def describe(error: EmbargoError | OSError) -> str:
    """The error as text for people, with the file if it concerns one."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
