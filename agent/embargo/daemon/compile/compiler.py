"""The compiler process: carries out one order, such as compiling the lists into a generation, and ends.

Its arguments are the numbers of descriptors: a file with the order, one for the answer, one for the output of a crash, and for
Compile those of the image and the report. The process may only read files, because it parses files that others have written.
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

IDLE_SECONDS = 3.0  # with the lowest scheduling priority; then normal priority, so that a reload does not wait for ever


def guard(protected: Iterable[tuple[str, str]]) -> Guard:
    """Checks of list lines: against the public suffix list, and against protected networks, (network, role) each."""
    suffixes = PublicSuffixList(accept_unknown=False)  # a name of one label that it does not have is one of a LAN

    def public(name: Name) -> bool:
        return bool(suffixes.is_public(names.to_text(name)))

    return Guard(
        public_suffix=public, suspects=_suspects(), protected=tuple((lists.network_from_text(n), role) for n, role in protected)
    )


def _suspects() -> frozenset[Name]:
    """All names in rules of the public suffix list, without wildcards."""
    rules: set[Name] = set()
    with open(PSLFILE, encoding="utf-8") as file:
        for line in file:
            rule = line.split(maxsplit=1)[0].lstrip("!") if line.strip() else ""
            if rule and not rule.startswith("//"):
                rules.add(names.from_text(rule))
                rules.add(names.from_text(rule.removeprefix("*.")))
    return frozenset(rules)


def build(settings: Config, loaded: sources.Loaded) -> tuple[bytes, Switchboard]:
    """(image, switchboard) of the loaded lists."""
    combined = policy.combine(loaded.apps, loaded.local, settings.policy)
    return image.encode(combined), policy.select(loaded.apps, combined.classes, settings.policy)


def report(
    settings: Config, loaded: sources.Loaded, built: Image, board: Switchboard, fingerprint: str = "", material: str = ""
) -> Report:
    """The report of a generation. `fingerprint`, `material`: as in `Report`."""
    return Report(
        digest=built.digest, fingerprint=fingerprint, material=material, switchboard=board, names=len(built),
        networks=built.networks, hosts={name: tuple(addresses) for name, addresses in loaded.hosts.items()},
        tls_ca=loaded.authorities, apps=tuple(_app(app, settings.policy) for app in loaded.apps),
        lists=tuple(
            ListReport(list_.source.path, list_.file, list_.size, len(list_.problems), _modified(list_.file))
            for list_ in loaded.lists
        ),
        problems=loaded.problems,
    )  # fmt: skip


def _app(app: App, selection: Selection) -> AppReport:
    counted: dict[str, Counter[str]] = {}
    for list_ in app.lists:
        kinds = Counter("networks" if entry.network else "names" for entry in list_.odd if not entry.exception)
        kinds["names"] += len(list_.usual.signs) - list_.usual.signs.count(EXCEPTION)
        prefix = "shared_" if list_.source.shared else ""
        counted.setdefault(list_.source.function, Counter()).update({f"{prefix}{kind}": n for kind, n in kinds.items()})
    if app.id == policy.BYPASS:
        counted |= {function: counted.get(function, Counter()) for function in policy.PORT_FUNCTIONS}
    functions = {
        function: FunctionReport(selection.class_on(app, function), **counted[function]) for function in sorted(counted)
    }
    return AppReport(
        id=app.id, name=app.name, operator=app.operator, order=app.order, summary=app.summary, homepage=app.homepage,
        default=app.default, on=any(function.on for function in functions.values()), shared=selection.shared_on(app.id),
        functions=functions,
    )  # fmt: skip


def _modified(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return time.time()


def harmed(loaded: sources.Loaded) -> list[Problem]:
    """Problems for neighbours (names that must keep working) that the catalogue, all of it on but shared lists, would block."""
    everything = Selection(apps="all", functions="all", shared=False)
    combined = policy.combine(loaded.apps, (), everything)
    built, board = Image(image.encode(combined)), policy.select(loaded.apps, combined.classes, everything)
    problems = []
    for app, name in sources.neighbours(loaded.apps):
        action, decision = board.choose(built.lookup(name))
        if action is not Action.PASS and decision is not None:
            place = f"{built.sources[decision.source].path}:{decision.line}"
            message = f"{names.to_text(name)} must keep working beside {app.id}, and {place} blocks it"
            problems.append(Problem(f"{app.id}/app.toml", 0, message, "narrow that line or move it to a shared list"))
    return problems


def main() -> None:
    """Arguments: descriptors of order, answer and error output; for Compile also of image and report."""
    order_fd, answer_fd, complaints, *results = map(int, sys.argv[1:])
    os.dup2(complaints, sys.stderr.fileno())
    _lower_priority()
    privileges.keep((privileges.CAP_DAC_READ_SEARCH,))
    with open(order_fd, "rb") as file:
        order = records.untagged(records.by_name(ORDERS), records.from_json(file.read()))
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
        return Matches(tuple(explain.matching(loaded.lists, explain.subject(order.subject), settings.policy)))
    data, board = build(settings, loaded)
    made = report(settings, loaded, Image(data), board, order.fingerprint, order.material)
    whole.fill(image_fd, data)
    whole.fill(report_fd, json.dumps(records.encode(made)).encode())
    return Compiled(made.digest)


def _lower_priority() -> None:
    """Run only while no other process needs the processor, so that no query waits; after IDLE_SECONDS, run normally."""

    def restore(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # without permission the priority stays low
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    with contextlib.suppress(
        OSError, ValueError
    ):  # sched(7): leaving SCHED_IDLE requires it; raising the limit works with CAP_SYS_RESOURCE only
        resource.setrlimit(resource.RLIMIT_NICE, (20, 20))
    signal.signal(signal.SIGALRM, restore)
    signal.setitimer(signal.ITIMER_REAL, IDLE_SECONDS)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
