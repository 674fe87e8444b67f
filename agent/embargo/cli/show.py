"""What the command line prints for people; --json prints the same facts as JSON."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from embargo import records
from embargo.cli.table import layout
from embargo.daemon.ask.orders import (
    AppStatus,
    Explained,
    FirewallOff,
    FirewallStatus,
    ListStatus,
    PauseStatus,
    Status,
)
from embargo.errors import printable
from embargo.report import Learning, UpstreamStats

USUAL_WIDTH = 80  # of a terminal that does not say how wide it is

Told = dict[str, Any]


def clean(text: object) -> str:
    """Text without control characters, which could manipulate a terminal."""
    return printable(str(text))


def as_json(told: object) -> None:
    """Print a record, or a part of one, as JSON."""
    print(json.dumps(records.encode(told), indent=2, ensure_ascii=True))


def lines(rows: Iterable[str]) -> None:
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


def seconds(count: float) -> str:
    return str(timedelta(seconds=round(count)))


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(now: Status, *, every_list: bool) -> None:
    print(f"running    pid {now.pid}, version {now.version}, up {seconds(now.uptime)}, {now.config}")
    print(f"policy     generation {now.generation}, in force for {seconds(now.since)}: {now.names} names, "
          f"{now.networks} networks, mode {now.mode}")  # fmt: skip
    word = "ok" if now.reload.ok else "FAILED, the previous policy stays in force"
    print(f"reload     {seconds(now.reload.ago)} ago: {word}")
    lines(f"             {error}" for error in now.reload.errors)
    where = "inside the main process" if now.inside else f"pids {', '.join(map(str, now.workers)) or 'none'}"
    print(f"resolvers  {where}; {now.worker_restarts} restarts; accelerator {now.accelerator}")
    print(f"listening  {', '.join(now.listen) or 'on no address'}")
    _firewall(now.firewall)
    _counters(now)
    lost = now.events.lost
    print(f"events     {now.events.file}" + (f", {lost} LOST: {now.events.trouble}" if lost else ""))
    print()
    _upstreams(now.upstreams)
    apps(now.apps)
    _section("PAUSED", list(map(paused, now.pauses)))
    _lists(now.lists, every_list)
    _section("PROBLEMS", now.problems)
    _section("NOT COVERED", now.uncovered)


def paused(pause: PauseStatus) -> str:
    client = f" for {pause.client}" if pause.client else ""
    return f"{pause.app or 'everything'}{client} until {pause.until[:19].replace('T', ' ')} UTC, by uid {pause.uid}"


def _lists(rows: Sequence[ListStatus], every: bool) -> None:
    oldest = seconds(max((row.age for row in rows), default=0))
    print(f"\n{len(rows)} lists, {sum(row.entries for row in rows)} entries, the oldest from {oldest} ago")
    if shown := [row for row in rows if every or row.problems]:
        table(("LIST", "ENTRIES", "PROBLEMS", "AGE"), ((r.list, r.entries, r.problems, seconds(r.age)) for r in shown))


def _section(title: str, rows: Sequence[str]) -> None:
    if rows:
        print(f"\n{title}")
        lines(f"  {row}" for row in rows)


def _firewall(wall: FirewallStatus | FirewallOff) -> None:
    if isinstance(wall, FirewallOff):
        print("firewall   off (firewall.enabled = false)")
        return
    protected = ", protected from other programs" if wall.owned else ""
    there = f"in force{protected}" if wall.present else "MISSING: no address is blocked"
    if wall.restored:
        there += f" (restored {wall.restored} times after other programs changed it)"
    lan = ", ".join(wall.lan) or "none, all forwarded traffic is policed"
    port = "intercepted" if wall.intercept_dns else "not intercepted"
    print(f"firewall   table {wall.table} {there}; lan: {lan}; port 53 {port}; fail {wall.fail}; on_stop {wall.on_stop}")
    if wall.learning is not None and wall.learning.on:
        _learning(wall.learning)
    hit = {name: packets for name, (packets, _) in wall.counters.items() if packets}
    if hit:
        print("           rejected packets: " + ", ".join(f"{name} {packets}" for name, packets in sorted(hit.items())))


def _learning(learning: Learning) -> None:
    freed, shared = (learning.counters.get(name, 0) for name in ("freed", "shared"))
    wait = f"; learning only, blocking starts in {seconds(learning.proving)}" if learning.proving else ""
    print(f"learnt     {learning.addresses} addresses of blocked names; {shared} left open (other names use them too); "
          f"{freed} released for that reason{wait}")  # fmt: skip


def _counters(now: Status) -> None:
    counters, cache = now.counters, now.cache
    queries = counters.get("queries_udp", 0) + counters.get("queries_tcp", 0)
    asked = cache.get("hits", 0) + cache.get("misses", 0)
    share = f"; {100 * cache.get('hits', 0) // asked} % cache hits" if asked else ""
    print(f"queries    {queries} from clients; {counters.get('upstream_queries', 0)} to upstreams, with the agent's own{share}")


def _upstreams(rows: Sequence[UpstreamStats]) -> None:
    if not rows:
        print("NO UPSTREAM: names that are not blocked cannot be answered; set [dns] upstream\n")
        return
    table(
        ("UPSTREAM", "STATE", "ASKED", "FAILED", "MS", "LAST ERROR"),
        (
            (
                r.server,
                ("ok" if r.healthy else "failing") + (", without EDNS" if r.plain else ""),
                r.asked,
                r.failed,
                r.milliseconds,
                r.last_error,
            )
            for r in rows
        ),
    )
    print()


# ── apps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def apps(rows: Iterable[AppStatus]) -> None:
    table(
        ("APP", "NAME", "BLOCKED FUNCTIONS", "NAMES", "NETWORKS", "ATTEMPTS"),
        (
            (
                app.id, app.name,
                (", ".join(name for name, f in app.functions.items() if f.on) or "-") + (" (PAUSED)" if app.paused else ""),
                sum(f.names for f in app.functions.values() if f.on),
                sum(f.networks for f in app.functions.values() if f.on),
                app.hits,
            )
            for app in rows
        ),
    )  # fmt: skip


def app(about: AppStatus) -> None:
    for title in ("name", "operator", "order", "summary", "homepage"):
        if text := getattr(about, title):
            print(f"{title:9} {clean(text)}")
    print()
    table(
        ("FUNCTION", "STATE", "NAMES", "NETWORKS", "SHARED NAMES", "SHARED NETWORKS", "ATTEMPTS"),
        (
            (name, "blocked" if f.on else "off", f.names, f.networks, f.shared_names, f.shared_networks, f.hits)
            for name, f in about.functions.items()
        ),
    )


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def why(found: Explained) -> None:
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
    for other in found.also:
        state = "also lists it" if other.on else "lists it, but is off"
        print(f"  {other.app}/{other.function} {state}: {_place(other.list, other.line, other.rule)}")
    known = [(found.list, found.line), *((other.list, other.line) for other in found.also)]
    for line in found.lines:
        if (line.list, line.line) not in known:
            print(f"  overridden: {_place(line.list, line.line, line.rule)}")
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


def _place(list_: str, line: int | None, rule: str | None) -> str:
    return clean(f"{list_}:{line}, rule {rule}")


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def verify(told: Told) -> None:
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
          f"{told['held']} held, {told['unproven']} unproven, {told['leaks'] or 'no'} leaks")  # fmt: skip


# ── top ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def top(counted: dict[str, Counter[str]], rows: int, since: str, *, clear: bool) -> None:
    if clear:
        print("\033[H\033[2J", end="")
    print(f"{counted['apps'].total()} attempts {'since' if ':' in since else 'in the last'} {since}")
    for title, found in counted.items():
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
        text = f"{told.get('client')}  {told.get('qname', '-')} {told.get('qtype')}  {what}  {decided}{where}{times}"
    elif kind == "drop":
        target = f"{told.get('dst')} {told.get('proto')}/{told.get('dport')}"
        if told.get("unlogged"):
            target = "packets without a record"
        text = f"{told.get('client', '-')}  {target}  {what}  {decided}{where}{times}"
    else:
        rest = {key: value for key, value in told.items() if key not in ("schema", "ts", "event")}
        text = "  ".join(f"{key}={value}" for key, value in rest.items())
    return clean(f"{stamp}  {kind:8}  {text}")
