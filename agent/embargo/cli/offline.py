"""What the configured lists say, for verbs that need no running agent.

The lists are read by a compiler process, as when the agent reloads: it parses what others write and keeps no privilege.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import embargo
from embargo import explain, records
from embargo.config import Config
from embargo.daemon.ask import catalogue
from embargo.daemon.ask.orders import Catalogue, Explained
from embargo.daemon.compile.orders import Check, Compile, Match
from embargo.daemon.host import endpoints, machine
from embargo.daemon.process.spawn import HERE
from embargo.daemon.supervise import surroundings, workshop
from embargo.dns.acl import Acl
from embargo.errors import EmbargoError, Problem, describe
from embargo.export import effective, render
from embargo.lists.image import Image
from embargo.records import Answer, Order
from embargo.report import Report


class Exported(NamedTuple):
    text: str
    entries: list[dict[str, Any]]
    omitted: tuple[str, ...]  # what the format cannot express


def why(settings: Config, subject: str, qtype: str, client: str) -> Explained:
    """The answer of a running agent's `why`, without what only an agent knows: learnt addresses and pauses.

    Raises ValueError if the subject is neither a name nor an address.
    """
    explain.subject(subject)
    image, report = compiled(settings)
    networks = endpoints.local_networks(settings, machine.interfaces())
    found = explain.verdict(image, report.switchboard, subject, qtype, client, Acl(networks))
    matches = _run(Match(settings.text, settings.file, _protected(settings), subject))
    return records.widened(Explained, explain.with_lines(found, matches.lines), lines=matches.lines)


def apps(settings: Config) -> Catalogue:
    """The answer of a running agent's `apps`, without hits."""
    _, report = compiled(settings)
    return Catalogue(catalogue.apps(report.apps, settings), 0)


def export(settings: Config, format_: str, serial: int | None) -> tuple[Exported, int]:
    """(the policy in a format of `export`, number of problems with the lists)."""
    image, report = compiled(settings)
    special = explain.special(zone for zone, _ in settings.dns.forward)
    policy = effective.read(image, report.switchboard, settings, special)
    made = render.render(policy, format_, embargo.__version__, serial)
    return Exported(made.text, render.as_data(policy, made.entries), made.omitted), len(report.problems)


def check(settings: Config) -> tuple[Problem, ...]:
    """All problems of the lists. Raises ConfigError if they cannot be used at all."""
    return _run(Check(settings.text, settings.file, _protected(settings))).problems


def compiled(settings: Config) -> tuple[Image, Report]:
    """The policy of the configured lists. Raises ConfigError if they cannot be used."""
    with tempfile.TemporaryDirectory(prefix="embargo-") as directory:
        image, report = Path(directory, "policy.img"), Path(directory, "report.json")
        order = Compile(settings.text, settings.file, _protected(settings), "", "")
        _run(order, (str(image), str(report)))
        return Image(image.read_bytes()), records.decode(Report, records.from_json(report.read_bytes()))


def _protected(settings: Config) -> tuple[tuple[str, str], ...]:
    """The networks that no list may block, each with its role."""
    return tuple(surroundings.protected(settings, surroundings.look(settings)))


def _run(order: Order[Answer], results: Sequence[str] = ()) -> Answer:
    try:
        return asyncio.run(workshop.run(HERE, order, results))
    except OSError as error:
        raise EmbargoError(f"the lists cannot be compiled: {describe(error)}") from None
