"""What the configured lists say, for verbs that need no running agent."""

from typing import Any, NamedTuple

import embargo
from embargo import explain, records
from embargo.config import Config
from embargo.daemon.ask.orders import AppStatus, Catalogue, Explained
from embargo.daemon.compile import compiler, sources
from embargo.daemon.host import endpoints, machine
from embargo.daemon.supervise import surroundings
from embargo.dns.acl import Acl
from embargo.export import effective, render
from embargo.lists.image import Image
from embargo.lists.policy import Switchboard

Told = dict[str, Any]


class Exported(NamedTuple):
    text: str
    entries: list[Told]
    omitted: tuple[str, ...]  # what the format cannot express


def why(settings: Config, subject: str, qtype: str, client: str) -> Explained:
    """The answer of a running agent's `why`, without what only an agent knows: learnt addresses and pauses. ValueError."""
    loaded, image, board = _compiled(settings)
    networks = endpoints.local_networks(settings, machine.interfaces())
    found = explain.verdict(image, board, subject, qtype, client, Acl(networks))
    lines = tuple(explain.matching(loaded.lists, explain.subject(subject)))
    return records.widened(Explained, found, lines=lines)


def apps(settings: Config) -> Catalogue:
    """The answer of a running agent's `apps`, without hits."""
    loaded, image, board = _compiled(settings)
    report = compiler.report(settings, loaded, image, board)
    return Catalogue(tuple(records.widened(AppStatus, app) for app in report.apps), 0)


def export(settings: Config, format_: str, serial: int | None) -> tuple[Exported, int]:
    """(the policy in a format of `export`, number of problems with the lists)."""
    loaded, image, board = _compiled(settings)
    special = explain.special(zone for zone, _ in settings.dns.forward)
    policy = effective.read(image, board, settings, special)
    made = render.render(policy, format_, embargo.__version__, serial)
    return Exported(made.text, render.as_data(policy, made.entries), made.omitted), len(loaded.problems)


def _compiled(settings: Config) -> tuple[sources.Loaded, Image, Switchboard]:
    protected = surroundings.protected(settings, surroundings.look(settings))
    loaded = sources.load(settings, compiler.guard(protected))
    data, board = compiler.build(settings, loaded)
    return loaded, Image(data), board
