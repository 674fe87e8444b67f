"""What the command line prints for people; --json prints the same facts as JSON."""

import json
import os
import pwd
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from embargo import records
from embargo.cli.table import layout
from embargo.daemon.ask.orders import (
    AppStatus,
    Explained,
    FirewallOff,
    FirewallStatus,
    FunctionStatus,
    ListStatus,
    PauseStatus,
    ReloadStatus,
    Status,
)
from embargo.errors import counted, duration, printable
from embargo.report import Learning, UpstreamStats

NOT_IN_FORCE = "the current files are NOT in force until the next reload"
USUAL_WIDTH = 80  # of a terminal that does not say how wide it is

Told = dict[str, Any]


def clean(text: object) -> str:
    """Text without control characters, which could manipulate a terminal."""
    return printable(str(text))


def as_json(told: object) -> None:
    """Print a record, or a part of one, as JSON."""
    print(json.dumps(records.encode(told), indent=2, ensure_ascii=True))


def lines(rows: Iterable[str]) -> None:
    """Print rows of text, without control characters."""
    for row in rows:
        print(clean(row))


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows in columns below bold headings; on a terminal, long cells are folded."""
    on_terminal = sys.stdout.isatty()
    width = (os.get_terminal_size(sys.stdout.fileno()).columns or USUAL_WIDTH) if on_terminal else None
    made = layout([head, *([clean(cell) for cell in row] for row in rows)], width)
    if on_terminal:
        made[0] = f"\033[1m{made[0]}\033[0m"
    print("\n".join(made))


def person(uid: int) -> str:
    """The name of a user; `uid 1234` if this machine has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(now: Status, *, every_list: bool) -> None:
    """Print the answer to `status`. `every_list`: also the lists without problems."""
    print(f"running    pid {now.pid}, version {now.version}, up {duration(now.uptime)}, {now.config}")
    _policy(now)
    _reload(now.reload)
    where = "inside the main process" if now.inside else _processes(now.workers)
    print(f"resolvers  {where}, {counted(now.worker_restarts, 'restart')}, {_code(now.accelerator)}")
    print(f"listening  {', '.join(now.listen) or 'on no address'}")
    _firewall(now.firewall, now.apps)
    _counters(now)
    lost = now.events.lost
    print(f"events     {now.events.file}" + (f", {lost} LOST: {now.events.trouble}" if lost else ""))
    print()
    _upstreams(now.upstreams)
    apps(now.apps)
    _section("PAUSED", list(map(paused, now.pauses)))
    _lists(now.lists, every_list)
    rolled_back = [f"embargo rollback: {NOT_IN_FORCE}"] if now.reload.rolled_back else []
    _section("PROBLEMS", [*rolled_back, *now.problems])
    _section("NOT COVERED", now.uncovered)


def paused(pause: PauseStatus) -> str:
    """A pause as text: what, for which client, until when, and the user who paused."""
    client = f" for {pause.client}" if pause.client else ""
    until = pause.until[:19].replace("T", " ")
    return f"{pause.app or 'everything'}{client} until {until} UTC, by {person(pause.uid)}"


def _policy(now: Status) -> None:
    names, networks = sum(app.blocked_names for app in now.apps), sum(app.blocked_networks for app in now.apps)
    act = "blocked" if now.mode == "block" else "logged only"
    print(f"policy     generation {now.generation} of the compiled lists, in force for {duration(now.since)}, mode {now.mode}: "
          f"{names} names and {networks} networks {act} for the chosen apps, "
          f"out of {now.names} names and {now.networks} networks in all lists"
          + ("; pauses are in force, see PAUSED" if now.pauses else ""))  # fmt: skip


def _reload(last: ReloadStatus) -> None:
    ago = duration(last.ago)
    if not last.ok:
        print(f"reload     {ago} ago: FAILED, the previous policy stays in force")
    elif last.rolled_back:
        print(f"reload     rolled back {ago} ago; {NOT_IN_FORCE}")
    else:
        print(f"reload     {ago} ago: ok")
    lines(f"             {error}" for error in last.errors)


def _processes(pids: Sequence[int]) -> str:
    many = "1 process" if len(pids) == 1 else f"{len(pids)} processes"
    return many + (f" ({', '.join(map(str, pids))})" if pids else "")


def _code(accelerator: str) -> str:
    return "compiled code (Cython)" if accelerator.startswith("native") else "interpreted Python (slower)"


def _lists(rows: Sequence[ListStatus], every: bool) -> None:
    oldest = duration(max((row.age or 0 for row in rows), default=0))
    entries = sum(row.entries for row in rows)
    print(f"\n{len(rows)} lists, {entries} entries, oldest list file changed {oldest} ago")
    if shown := [row for row in rows if every or row.problems]:
        ages = ("" if row.age is None else duration(row.age) for row in shown)
        cells = ((row.list, row.entries, row.problems, age) for row, age in zip(shown, ages, strict=True))
        table(("LIST", "ENTRIES", "PROBLEMS", "AGE"), cells)


def _section(title: str, rows: Sequence[str]) -> None:
    if rows:
        print(f"\n{title}")
        lines(f"  {row}" for row in rows)


def _firewall(wall: FirewallStatus | FirewallOff, catalogue: Sequence[AppStatus]) -> None:
    if isinstance(wall, FirewallOff):
        print("firewall   off (firewall.enabled = false)")
        return
    protected = ", protected from other programs" if wall.owned else ""
    there = f"in force{protected}" if wall.present else "MISSING: no address is blocked"
    if wall.restored:
        there += f" (restored {wall.restored} times after other programs changed it)"
    lan = ", ".join(wall.lan) or "none (all forwarded traffic and this machine's own is filtered)"
    port = "; clients' port 53 redirected here" if wall.intercept_dns else "; port 53 not redirected"
    print(f"firewall   table {wall.table} {there}; lan: {lan}{port}")
    print(f"           {'; '.join(_without_agent(wall))}")
    if wall.learning is not None and wall.learning.on:
        _learning(wall.learning)
    classes = {f"{app.id}_{name}": f"{app.id}/{name}" for app in catalogue for name in app.functions}
    hit = {classes.get(name, name): packets for name, (packets, _) in wall.counters.items() if packets}
    if hit:
        print("           rejected packets: " + ", ".join(f"{name} {packets}" for name, packets in sorted(hit.items())))


def _without_agent(wall: FirewallStatus) -> Iterator[str]:
    """What becomes of clients and rules without a resolver, and without the agent."""
    if wall.intercept_dns:
        clients = "is rejected" if wall.fail == "closed" else "passes unfiltered"
        yield f"if no resolver runs: clients' DNS {clients} (fail = {wall.fail})"
    rules = "stay" if wall.on_stop == "keep" else "are removed"
    yield f"if the agent stops: rules {rules} (on_stop = {wall.on_stop})"


def _learning(learning: Learning) -> None:
    shared, freed = (learning.counters.get(name, 0) for name in ("shared", "freed"))
    parts = [
        f"{learning.addresses} addresses behind blocked names are blocked",
        f"{shared} were spared from the start and {freed} released later, because names that are not blocked use them too",
    ]
    if learning.proving:
        parts.append(f"blocking starts in {duration(learning.proving)} (until then addresses are only recorded)")
    print(f"learnt     {'; '.join(parts)}")


def _counters(now: Status) -> None:
    counters, cache = now.counters, now.cache
    queries = counters.get("queries_udp", 0) + counters.get("queries_tcp", 0)
    parts = [
        f"{queries} from clients",
        f"{counters.get('upstream_queries', 0)} to upstreams, including those that no client asked for",
    ]
    if asked := cache.get("hits", 0) + cache.get("misses", 0):
        parts.append(f"{100 * cache.get('hits', 0) // asked} % cache hits")
    print(f"queries    {'; '.join(parts)}")


def _state_of(upstream: UpstreamStats) -> str:
    return ("ok" if upstream.healthy else "failing") + (", without EDNS" if upstream.plain else "")


def _upstreams(rows: Sequence[UpstreamStats]) -> None:
    if not rows:
        print("NO UPSTREAM: names that are not blocked cannot be answered; set [dns] upstream\n")
        return
    table(
        ("UPSTREAM", "STATE", "QUERIES", "FAILED", "RTT (ms)", "LAST ERROR"),
        ((r.server, _state_of(r), r.asked, r.failed, r.milliseconds, r.last_error) for r in rows),
    )
    print()


# ── apps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def apps(rows: Iterable[AppStatus]) -> None:
    """Print a table of apps, one row each."""
    table(
        ("APP", "NAME", "BLOCKED FUNCTIONS", "NAMES", "NETWORKS", "ATTEMPTS"),
        (
            (app.id, app.name, _blocked(app), app.blocked_names, app.blocked_networks, "-" if app.hits is None else app.hits)
            for app in rows
        ),
    )


def _blocked(app: AppStatus) -> str:
    """The functions that are on, those without effect last with the reason, and whether the app is paused."""
    on = {name: f.inactive for name, f in app.functions.items() if f.on}
    parts = [", ".join(name for name, reason in on.items() if not reason)]
    parts += [
        f"{', '.join(name for name, other in on.items() if other == reason)} (inactive: {reason})"
        for reason in dict.fromkeys(on.values()) if reason
    ]  # fmt: skip
    return ("PAUSED: " if app.paused and on else "") + ("; ".join(filter(None, parts)) or "-")


def app(about: AppStatus) -> None:
    """Print one app: what it is, and a table of its functions."""
    for title in ("name", "operator", "order", "summary", "homepage"):
        if text := getattr(about, title):
            print(f"{title:9} {clean(text)}")
    print()
    table(
        ("FUNCTION", "STATE", "NAMES", "NETWORKS", "SHARED NAMES", "SHARED NETWORKS", "ATTEMPTS"),
        (
            (name, _state(f), f.names, f.networks, f.shared_names, f.shared_networks, "-" if f.hits is None else f.hits)
            for name, f in about.functions.items()
        ),
    )


def _state(function: FunctionStatus) -> str:
    if not function.on:
        return "off"
    return f"inactive: {function.inactive}" if function.inactive else "blocked"


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def why(found: Explained) -> None:
    """Print the verdict about a name or address, and what each matching line has to do with it."""
    subject = clean(found.subject)
    match found.verdict:
        case "blocked":
            print(f"{subject} is blocked")
        case "audited":
            print(f'{subject} passes and is logged: policy.mode = "audit"')
        case "allowed":
            print(f"{subject} is allowed by the administrator")
        case "special":
            print(f"{subject}: {found.reason}")
        case "passed":
            print(f"{subject} is not blocked: {found.reason}")
    if found.list:
        print(f"  app {found.app}, function {found.function}, {_place(found.list, found.line, found.rule)}")
    if found.answer:
        print(f"  its answer leads to {clean(found.answer)}")
    if claim := found.unless_paused:
        print(f"  would be blocked by {_place(claim.list, claim.line, claim.rule)}")
    _other_lines(found)
    if found.learnt:
        print(f"  learnt: {clean(found.learnt)} resolved to it")
    elif found.spared:
        blocked, unblocked = clean(found.spared.name), clean(found.spared.neighbour)
        print(f"  not blocked: {blocked}, which is blocked, and {unblocked}, which is not, both resolve to it")
    if found.names:
        print(f"  names that resolved to it: {clean(', '.join(found.names))}")
    if found.passing:
        print("  passes for now: a name on the allow list resolved to it")
    for each in found.paused or ():
        print(f"  paused: {paused(each)}")
    if found.client_refused:
        print(f"  {clean(found.client)}: {found.client_refused}")


def _other_lines(found: Explained) -> None:
    """The lines that match and do not decide, each with its part in the decision."""
    known = [(found.list, found.line)]
    if claim := found.unless_paused:
        known.append((claim.list, claim.line))
    for other in found.also:
        if (other.list, other.line) not in known:
            state = "also lists it" if other.on else "lists it, but is off"
            print(f"  {other.app}/{other.function} {state}: {_place(other.list, other.line, other.rule)}")
            known.append((other.list, other.line))
    decided: set[str] = set()  # apps of which a more specific line was printed, or decides
    for line in found.lines:
        exception = line.rule.startswith("!")
        if (line.list, line.line) not in known:
            word = "exception" if exception and line.app not in decided else "off" if line.off else "overridden"
            print(f"  {word}: {_place(line.list, line.line, line.rule)}")
        decided.add(line.app)


def _place(list_: str, line: int | None, rule: str | None) -> str:
    return clean(f"{list_}:{line}, {rule}")


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def verify(told: Told) -> None:
    """Print the results of `verify.run`: a table, the notes, and the totals."""
    table(
        ("APP", "FUNCTION", "KIND", "PROBES", "HELD", "LEAKS", "VERDICT", "DETAIL"),
        (
            (r["app"], r["function"], r["kind"], r["probes"], r["held"], r["leaks"], r["verdict"], r["detail"])
            for r in told["rows"]
        ),
    )
    print()
    lines(told["notes"])
    which = f"a sample, seed {told['seed']}" if told["samples"] else "all entries"
    print(f"generation {told['generation']}, {told['probes']} probes ({which}) in {told['seconds']} s: "
          f"{told['held']} held, {told['unproven']} unproven, {counted(told['skipped'], 'kind')} skipped, "
          f"{counted(told['leaks'], 'leak') if told['leaks'] else 'no leaks'}")  # fmt: skip


# ── top ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def top(attempts: dict[str, Counter[str]], rows: int, since: str, *, clear: bool) -> None:
    """Print tables of attempts. `attempts`: title → attempts by what is counted; `clear`: clear the terminal first."""
    if clear:
        print("\033[H\033[2J", end="")
    total = counted(attempts["apps"].total(), "attempt")
    print(f"{total} {'since' if ':' in since else 'in the last'} {since}")
    for title, found in attempts.items():
        if found:
            print()
            table((title.upper(), "ATTEMPTS"), found.most_common(rows))


# ── the event log ────────────────────────────────────────────────────────────────────────────────────────────────────────


def event(told: Told) -> str:
    """An event as one line of text."""
    stamp = str(told.get("ts", ""))[:19].replace("T", " ")
    kind = told.get("event")
    times = f"  x{told['count']}" if told.get("count", 1) != 1 else ""
    decided = f"{told.get('app', '-')}/{told.get('function', '-')}"
    where = f"  {told['list']}:{told.get('line', '-')}" if "list" in told else ""
    what = str(told.get("action", "")) + (" (audit)" if told.get("mode") == "audit" else "")
    if kind == "dns":
        asked = "further names" if told.get("others") else f"{told.get('qname', '-')} {told.get('qtype')}"
        text = f"{told.get('client', '-')}  {asked}  {what}  {decided}{where}{times}"
    elif kind == "drop":
        target = f"{told.get('dst')} {told.get('proto')}/{told.get('dport')}"
        if told.get("unlogged"):
            target = "packets without a record"
        elif told.get("others"):
            target = "further addresses and ports"
        text = f"{told.get('client', '-')}  {target}  {what}  {decided}{where}{times}"
    else:
        text = "  ".join(_member(key, value) for key, value in told.items() if key not in ("schema", "ts", "event"))
    return clean(f"{stamp}  {kind:8}  {text}")


#: keys of events whose value says by itself what it is
PLAIN = ("why", "verb", "entry", "app", "what", "server", "state", "reason", "version")


def _member(key: str, value: object) -> str:
    """A key of an event with its value."""
    if key == "ok":
        return "ok" if value else "FAILED"
    if key == "uid" and isinstance(value, int):
        return f"by {person(value)}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key in PLAIN else f"{key} {text}"
