"""Orders to a compiler process and their answers. A process gets one order and gives one answer, each as a JSON file."""

from dataclasses import dataclass

from embargo.errors import Problem
from embargo.records import Order
from embargo.report import Line


@dataclass(frozen=True, slots=True)
class Compiled:
    """The image and the report were written."""

    digest: str  # of the image


@dataclass(frozen=True, slots=True)
class Matches:
    """The lines that match."""

    lines: tuple[Line, ...]  # the most specific first


@dataclass(frozen=True, slots=True)
class Checked:
    """The problems that were found."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The answer to any order if the configuration or a file cannot be used."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Compile(Order[Compiled]):
    """Read the lists and write the image and the report.

    `config`, `file`: the text of the configuration and its path; `protected`: networks that no list may block, each with its
    role; `fingerprint`, `material`: for the report (`report.Report`).
    """

    config: str
    file: str
    protected: tuple[tuple[str, str], ...]
    fingerprint: str
    material: str


@dataclass(frozen=True, slots=True)
class Match(Order[Matches]):
    """Read the lists and find the lines that match `subject`, a name or an address."""

    config: str
    file: str
    protected: tuple[tuple[str, str], ...]
    subject: str


@dataclass(frozen=True, slots=True)
class Check(Order[Checked]):
    """Read the lists and report all their problems, and the neighbours of apps that the catalogue would block.

    Problems of the configuration itself are not reported: a value that cannot be used has its default.
    """

    config: str
    file: str
    protected: tuple[tuple[str, str], ...]


ORDERS = (Compile, Match, Check)
