"""What the configuration leaves open, as text: NOT COVERED in `embargo status`."""

from collections.abc import Iterator, Sequence

from embargo.config import Config, Firewall
from embargo.errors import duration
from embargo.lists import policy
from embargo.lists.policy import Action, Selection
from embargo.report import Learning, ListReport, Report

STALE = 180 * 86_400  # seconds after which a list of servers that change often is reported as old
CHANGING = ("doh", "httpdns")  # functions of the bypass app whose servers change often


def _lists_of_servers(chosen: Selection, lists: Sequence[ListReport], now: float) -> Iterator[str]:
    """Lists of bypass servers that are missing or old."""
    for function in CHANGING:
        function_lists = [list_ for list_ in lists if list_.list.startswith(f"{policy.BYPASS}/{function}.") and list_.entries]
        if function not in chosen.bypass:
            continue
        if not function_lists:
            yield f"servers of {function}: there is no list {policy.BYPASS}/{function}.list"
        yield from (
            f"servers of {function} added in the last {(now - list_.modified) // 86_400:.0f} days: {list_.list} is that old"
            for list_ in function_lists
            if now - list_.modified > STALE
        )


def uncovered(
    settings: Config, report: Report, *, now: float, listening: bool, learning: Learning | None = None,
    flowtables: Sequence[str] = (), unfiltered: Sequence[str] = (), untold: int = 0, absent: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What the configuration leaves open, one line of text each.

    `now`: seconds since 1970; `listening`: there is a listening socket; `learning`, `flowtables`: as the guardian reports;
    `unfiltered`: interfaces whose clients are not filtered; `untold`: reports that resolvers could not make to the guardian;
    `absent`: interfaces of [dns] listen that have no address.
    """
    firewall, chosen = settings.firewall, settings.policy
    on = [app for app in report.apps if app.on and app.id != policy.BYPASS]
    gaps = []
    if chosen.mode is Action.AUDIT:
        gaps.append('nothing is blocked, only logged (policy.mode = "audit")')
    if not on:
        gaps.append("no app is switched on (policy.apps)")
    if not firewall.enabled:
        gaps.append("addresses, hard-coded resolvers and encrypted DNS: the firewall is off (firewall.enabled = false)")
    elif not firewall.lan:
        gaps.append("port 53 to other resolvers, DNS over TLS and over QUIC by port: no interface is named (firewall.lan)")
    elif not firewall.intercept_dns:
        gaps.append("port 53 to other resolvers (firewall.intercept_dns = false)")
    if firewall.enabled and unfiltered:
        gaps.append(f"clients behind {', '.join(unfiltered)}, if there are any: firewall.lan does not name them")
    if firewall.enabled:
        gaps += _not_learnt(firewall, learning, untold)
        gaps += [f"open connections that the flowtable {name} forwards past all rules" for name in flowtables]
        nameless = [app.id for app in on if not any(f.on and f.networks for f in app.functions.values())]
        if nameless:
            apps = ", ".join(nameless)
            gaps.append(f"addresses of {apps}: no list has any for the blocked functions; only their names are blocked")
    gaps += _lists_of_servers(chosen, report.lists, now)
    unblocked = [function for function in policy.BYPASS_FUNCTIONS if function not in chosen.bypass]
    if unblocked:
        gaps.append(f"bypasses that are not blocked: {', '.join(unblocked)} (policy.bypass)")
    if chosen.functions != "all":
        blocked = list(dict.fromkeys([*chosen.functions, *(["httpdns"] if "httpdns" in chosen.bypass else [])]))
        gaps.append(f"functions other than {_series(blocked)} (policy.functions)")
    shared = sum(
        f.shared_names + f.shared_networks
        for app in report.apps if not app.shared for f in app.functions.values() if f.on
    )  # fmt: skip
    if shared:
        gaps.append(f"{shared} entries of the blocked functions, because other services use them too (policy.shared)")
    if not listening:
        gaps.append("DNS queries: the agent listens on no address")
    gaps += [f"DNS queries on {name}: dns.listen names it, and no such interface has an address" for name in absent]
    return gaps


def _series(words: Sequence[str]) -> str:
    """Words as English text: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _not_learnt(firewall: Firewall, learning: Learning | None, untold: int) -> Iterator[str]:
    if not firewall.learn:
        yield "addresses known only from DNS answers (firewall.learn = false)"
    elif learning is not None:
        if learning.proving:
            start = duration(learning.proving)
            yield f"addresses known only from DNS answers: blocking starts in {start} (until then they are only recorded)"
        if learning.trouble:
            yield f"addresses learnt before a restart: they cannot be saved: {learning.trouble}"
        if learning.spared:
            spared = len(learning.spared)
            yield f"{spared} addresses behind blocked names that other names use too (embargo status --json, firewall.learning)"
        if full := learning.counters.get("overflow", 0):
            yield f"{full} addresses behind blocked names since the start, because as many as possible are blocked already"
        if full := learning.counters.get("passing_full", 0):
            yield f"{full} answers for allowed names, whose addresses may stay blocked: as many as possible pass already"
        late = untold + learning.counters.get("crowded", 0) + learning.counters.get("unanswered", 0)
        if late:
            yield f"{late} reports between resolvers and firewall since the start, which were too many at a time"
