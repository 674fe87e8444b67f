"""What the command line prints for people. The same facts come as JSON with --json."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from embargo.cli import columns
from embargo.errors import printable

USUAL_WIDTH = 80  # of a terminal that does not say how wide it is

Told = dict[str, Any]


def clean(text: object) -> str:
    """Text that cannot move a terminal's cursor."""
    return printable(str(text))


def as_json(told: object) -> None:
    print(json.dumps(told, indent=2, ensure_ascii=True))


def lines(rows: Iterable[str]) -> None:
    for row in rows:
        print(clean(row))


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows in columns below bold headings; on a terminal, long cells are folded."""
    on_terminal = sys.stdout.isatty()
    width = (os.get_terminal_size(sys.stdout.fileno()).columns or USUAL_WIDTH) if on_terminal else None
    made = columns.layout([head, *([clean(cell) for cell in row] for row in rows)], width)
    if on_terminal:
        made[0] = f"\033[1m{made[0]}\033[0m"
    print("\n".join(made))


def seconds(count: float) -> str:
    return str(timedelta(seconds=round(count)))


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(told: Told, *, every_list: bool) -> None:
    print(f"running    pid {told['pid']}, version {told['version']}, up {seconds(told['uptime'])}, {told['config']}")
    print(f"policy     generation {told['generation']} for {seconds(told['since'])}: {told['names']} names, "
          f"{told['networks']} networks, mode {told['mode']}")  # fmt: skip
    reload = told["reload"]
    word = "ok" if reload["ok"] else "FAILED, what was in force stays in force"
    print(f"reload     {word}, {seconds(reload['ago'])} ago")
    lines(f"             {error}" for error in reload["errors"])
    where = "inside the main process" if told["inside"] else f"pids {', '.join(map(str, told['workers'])) or 'none'}"
    print(f"resolvers  {where}, {told['worker_restarts']} restarts, accelerator {told['accelerator']}")
    print(f"listening  {', '.join(told['listen']) or 'nowhere'}")
    _firewall(told["firewall"])
    _counters(told)
    lost = told["events"]["lost"]
    print(f"events     {told['events']['file']}" + (f", {lost} LOST: {told['events']['trouble']}" if lost else ""))
    print()
    _upstreams(told["upstreams"])
    apps(told["apps"])
    _section("PAUSED", list(map(paused, told["pauses"])))
    _lists(told["lists"], every_list)
    _section("PROBLEMS", told["problems"])
    _section("NOT COVERED", told["uncovered"])


def paused(told: Told) -> str:
    whom = f" for {told['client']}" if told["client"] else ""
    return f"{told['app'] or 'everything'}{whom} until {told['until'][:19].replace('T', ' ')} UTC, by uid {told['uid']}"


def _lists(rows: list[Told], every: bool) -> None:
    oldest = seconds(max((row["age"] for row in rows), default=0))
    print(f"\n{len(rows)} lists, {sum(row['entries'] for row in rows)} entries, the oldest {oldest} old")
    shown = [row for row in rows if every or row["problems"]]
    if shown:
        table(
            ("LIST", "ENTRIES", "PROBLEMS", "AGE"), ((r["list"], r["entries"], r["problems"], seconds(r["age"])) for r in shown)
        )


def _section(title: str, rows: list[str]) -> None:
    if rows:
        print(f"\n{title}")
        lines(f"  {row}" for row in rows)


def _firewall(told: Told) -> None:
    if not told["enabled"]:
        print("firewall   off (firewall.enabled = false)")
        return
    there = ("in force" + (" and ours alone" if told["owned"] else "")) if told["present"] else "MISSING"
    if told["restored"]:
        there += f" (restored {told['restored']} times after others changed it)"
    lan = ", ".join(told["lan"]) or "none, all forwarded traffic is policed"
    port = "intercepted" if told["intercept_dns"] else "not intercepted"
    print(
        f"firewall   table {told['table']} {there}, lan {lan}, port 53 {port}, fail {told['fail']}, on_stop {told['on_stop']}"
    )
    learning = told["learning"]
    if learning.get("on"):
        freed, shared = (learning["counters"].get(name, 0) for name in ("freed", "shared"))
        wait = f", noted only for {seconds(learning['proving'])} yet" if learning["proving"] else ""
        print(f"learnt     {learning['addresses']} addresses behind blocked names, spared {shared} times, freed {freed}{wait}")
    hit = {name: packets for name, (packets, _) in told["counters"].items() if packets}
    if hit:
        print("           rejected packets: " + ", ".join(f"{name} {packets}" for name, packets in sorted(hit.items())))


def _counters(told: Told) -> None:
    counters, cache = told["counters"], told["cache"]
    queries = counters.get("queries_udp", 0) + counters.get("queries_tcp", 0)
    asked = cache.get("hits", 0) + cache.get("misses", 0)
    share = f", cache {100 * cache.get('hits', 0) // asked} % hits" if asked else ""
    print(f"queries    {queries}, {counters.get('upstream_queries', 0)} sent upstream{share}")


def _upstreams(rows: list[Told]) -> None:
    if not rows:
        print("NO UPSTREAM: names that are not blocked cannot be answered; set [dns] upstream\n")
        return
    table(
        ("UPSTREAM", "STATE", "ASKED", "FAILED", "MS", "LAST ERROR"),
        (
            (r["server"], "ok" if r["healthy"] else "set aside", r["asked"], r["failed"], r["milliseconds"], r["last_error"])
            for r in rows
        ),
    )
    print()


# ── apps ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def apps(rows: list[Told]) -> None:
    table(
        ("APP", "NAME", "BLOCKED FUNCTIONS", "NAMES", "NETWORKS", "HITS"),
        (
            (
                app["id"], app["name"],
                (", ".join(name for name, f in app["functions"].items() if f["on"]) or "-")
                + (" (PAUSED)" if "paused" in app else ""),
                sum(f.get("names", 0) for f in app["functions"].values() if f["on"]),
                sum(f.get("networks", 0) for f in app["functions"].values() if f["on"]),
                app.get("hits", "-"),
            )
            for app in rows
        ),
    )  # fmt: skip


def app(told: Told) -> None:
    for key in ("name", "operator", "order", "summary", "homepage"):
        if told.get(key):
            print(f"{key:9} {clean(told[key])}")
    print()
    table(
        ("FUNCTION", "STATE", "NAMES", "NETWORKS", "SHARED NAMES", "SHARED NETWORKS", "HITS"),
        (
            (
                name, "blocked" if f["on"] else "off", f.get("names", 0), f.get("networks", 0),
                f.get("shared_names", 0), f.get("shared_networks", 0), f.get("hits", "-"),
            )
            for name, f in told["functions"].items()
        ),
    )  # fmt: skip


# ── why ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def why(told: Told) -> None:
    subject = clean(told["subject"])
    match told["verdict"]:
        case "blocked":
            print(f"{subject} is blocked")
        case "audited":
            print(f'{subject} passes and is logged: policy.mode = "audit"')
        case "allowed":
            print(f"{subject} is allowed by the administrator")
        case "special":
            print(f"{subject}: {told['reason']}")
        case _:
            print(f"{subject} is not blocked: {told['reason']}")
    if told.get("list"):
        print(f"  app {told['app']}, function {told['function']}, {_place(told)}")
    for other in told.get("also", []):
        state = "also claims it" if other["on"] else "claims it, but is off"
        print(
            f"  {other['app']}/{other['function']} {state}: {clean(other['list'])}:{other['line']}, rule {clean(other['rule'])}"
        )
    winner = (told.get("list"), told.get("line"))
    known = [winner, *((o["list"], o["line"]) for o in told.get("also", []))]
    for line in told.get("lines", []):
        if (line["list"], line["line"]) not in known:
            print(f"  beaten: {_place(line)}")
    if told.get("learnt"):
        print(f"  learnt: {clean(told['learnt'])} led there")
    elif told.get("spared"):
        spared = told["spared"]
        print(f"  {clean(spared['name'])} leads there and is blocked, but {clean(spared['neighbour'])} is there too")
    if told.get("names"):
        print(f"  names answered with it: {clean(', '.join(told['names']))}")
    if told.get("passing"):
        print("  it passes all the same just now: a name on the allow list led to it")
    for each in told.get("paused", ()):
        print(f"  paused: {paused(each)}")
    if told.get("client_refused"):
        print(f"  {clean(told['client'])}: {told['client_refused']}")


def _place(told: Told) -> str:
    return clean(f"{told['list']}:{told['line']}, rule {told['rule']}")


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


# ── the block log ────────────────────────────────────────────────────────────────────────────────────────────────────────


def event(told: Told) -> str:
    """One line for one event."""
    stamp = str(told.get("ts", ""))[:19].replace("T", " ")
    kind = told.get("event")
    times = f"  x{told['count']}" if told.get("count", 1) != 1 else ""
    decided = f"{told.get('app', '-')}/{told.get('function', '-')}"
    where = f"  {told['list']}:{told['line']}" if "list" in told else ""
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
