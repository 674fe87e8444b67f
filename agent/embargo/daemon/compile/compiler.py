"""One load of the lists into one generation, in a process of its own that ends with it.

It is given files by number: one with the order, one for the answer, one for what a crash prints, and for Compile two more: the
image and the report. The process may read and nothing else: it parses files that others write.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from types import FrameType

from publicsuffixlist import PSLFILE, PublicSuffixList

from embargo import config, explain, names, records
from embargo.config import Config
from embargo.daemon.compile import sources
from embargo.daemon.compile.orders import ORDERS, Check, Checked, Compile, Compiled, Match, Matches, Rejected
from embargo.daemon.host import whole
from embargo.daemon.process import privileges
from embargo.errors import ConfigError, Problem
from embargo.lists import image, lists, policy
from embargo.lists.columns import EXCEPTION
from embargo.lists.image import Image
from embargo.lists.lists import Guard
from embargo.lists.policy import Action, App, Selection, Switchboard
from embargo.names import Name
from embargo.report import AppReport, FunctionReport, ListReport, Report

POLITE = 3.0  # seconds in which it has the processor only when nobody else wants it; a change must not wait for ever


def guard(protected: Iterable[tuple[str, str]]) -> Guard:
    """The line guards: the public suffix list, and the networks that must not be cut off, each with its role."""
    suffixes = PublicSuffixList()

    def public(name: Name) -> bool:
        return bool(suffixes.is_public(names.to_text(name)))

    return Guard(
        public_suffix=public, suspects=_suspects(), protected=tuple((lists.network_from_text(n), role) for n, role in protected)
    )


def _suspects() -> frozenset[Name]:
    """Every name that a rule of the public suffix list speaks of."""
    found: set[Name] = set()
    with open(PSLFILE, encoding="utf-8") as file:
        for line in file:
            rule = line.split(maxsplit=1)[0].lstrip("!") if line.strip() else ""
            if rule and not rule.startswith("//"):
                found.add(names.from_text(rule))
                found.add(names.from_text(rule.removeprefix("*.")))
    return frozenset(found)


def build(settings: Config, loaded: sources.Loaded) -> tuple[bytes, Switchboard]:
    """The image and the switchboard of what was loaded."""
    combined = policy.combine(loaded.apps, loaded.local, settings.policy)
    return image.encode(combined), policy.select(loaded.apps, combined.classes, settings.policy)


def report(
    settings: Config, loaded: sources.Loaded, built: Image, board: Switchboard, fingerprint: str = "", material: str = ""
) -> Report:
    """What `status`, `apps` and the events say about a generation."""
    return Report(
        digest=built.digest, fingerprint=fingerprint, material=material, switchboard=board, names=len(built),
        networks=built.networks, hosts={name: tuple(found) for name, found in loaded.hosts.items()},
        tls_ca=loaded.authorities, apps=tuple(_app(app, settings.policy) for app in loaded.apps),
        lists=tuple(
            ListReport(each.source.path, each.file, each.size, len(each.problems), _modified(each.file))
            for each in loaded.lists
        ),
        problems=loaded.problems,
    )  # fmt: skip


def _app(app: App, selection: Selection) -> AppReport:
    counted: dict[str, Counter[str]] = {}
    for each in app.lists:
        kinds = Counter("networks" if entry.network else "names" for entry in each.odd if not entry.exception)
        kinds["names"] += len(each.usual.signs) - each.usual.signs.count(EXCEPTION)
        prefix = "shared_" if each.source.shared else ""
        counted.setdefault(each.source.function, Counter()).update({f"{prefix}{kind}": n for kind, n in kinds.items()})
    if app.id == policy.BYPASS:
        counted |= {function: counted.get(function, Counter()) for function in policy.PORT_FUNCTIONS}
    functions = {
        function: FunctionReport(selection.class_on(app, function), **counted[function]) for function in sorted(counted)
    }
    return AppReport(
        id=app.id, name=app.name, operator=app.operator, order=app.order, summary=app.summary, homepage=app.homepage,
        default=app.default, on=any(each.on for each in functions.values()), shared=selection.shared_on(app.id),
        functions=functions,
    )  # fmt: skip


def _modified(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return time.time()


def harmed(loaded: sources.Loaded) -> list[Problem]:
    """The neighbours that the catalogue would block with everything but the shared lists on, though they must keep working."""
    everything = Selection(apps="all", functions="all", shared=False)
    combined = policy.combine(loaded.apps, (), everything)
    built, board = Image(image.encode(combined)), policy.select(loaded.apps, combined.classes, everything)
    found = []
    for app, name in sources.neighbours(loaded.apps):
        action, decision = board.choose(built.lookup(name))
        if action is not Action.PASS and decision is not None:
            place = f"{built.sources[decision.source].path}:{decision.line}"
            message = f"{names.to_text(name)} must keep working beside {app.id}, and {place} blocks it"
            found.append(Problem(f"{app.id}/app.toml", 0, message, "narrow that line or move it to a shared list"))
    return found


def main() -> None:
    order_fd, answer_fd, complaints, *results = map(int, sys.argv[1:])
    os.dup2(complaints, sys.stderr.fileno())
    _stand_back()
    privileges.keep((privileges.CAP_DAC_READ_SEARCH,))
    with open(order_fd, "rb") as file:
        order = records.untagged(records.by_name(ORDERS), json.load(file))
    answer = _obey(order, *results)
    with open(answer_fd, "w", encoding="utf-8") as file:
        json.dump(records.tagged(answer), file)


def _obey(
    order: Compile | Match | Check, image_fd: int = -1, report_fd: int = -1
) -> Compiled | Matches | Checked | Rejected:  # fmt: skip
    try:
        reading = config.read(order.config.encode(), order.file)
        if reading.problems and not isinstance(order, Check):
            return Rejected(reading.problems)
        settings = reading.config
        loaded = sources.load(settings, guard(order.protected))
    except ConfigError as error:
        return Rejected(error.problems)
    if isinstance(order, Check):
        return Checked((*loaded.problems, *harmed(loaded)))
    if isinstance(order, Match):
        return Matches(tuple(explain.matching(loaded.lists, explain.subject(order.subject))))
    data, board = build(settings, loaded)
    made = report(settings, loaded, Image(data), board, order.fingerprint, order.material)
    whole.fill(image_fd, data)
    whole.fill(report_fd, json.dumps(records.encode(made)).encode())
    return Compiled(made.digest)


def _stand_back() -> None:
    """No query waits for us, not even for a time slice; on a busy machine that would last for ever, so it lasts a while."""

    def like_everybody(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # it may not be allowed; then we stay polite
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    with contextlib.suppress(OSError, ValueError):  # sched(7): what allows it; root may, as long as it has not given that up
        resource.setrlimit(resource.RLIMIT_NICE, (20, 20))
    signal.signal(signal.SIGALRM, like_everybody)
    signal.setitimer(signal.ITIMER_REAL, POLITE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
