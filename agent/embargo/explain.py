"""Why a name or an address is blocked or not: `embargo why`.

The verdict comes from the image and the switchboard, by the same look-ups that answer queries and fill the firewall; what
else matches comes from the lists themselves, so that an administrator sees the lines that lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from embargo import names
from embargo.dns import message
from embargo.dns.acl import Acl
from embargo.dns.special import SOURCES
from embargo.dns.special import kind as special_kind
from embargo.lists import lists, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Claims, Decision, List, Network, Switchboard
from embargo.names import Name

Told = dict[str, Any]


def subject(text: str) -> Network | Name:
    """What somebody asks about. ValueError says what would be right."""
    entry = lists.parse_entry(text)
    if entry.exception or entry.kind is policy.EntryKind.EXACT:
        raise ValueError(f'"{text}" is a rule; ask for the name alone')
    if entry.network is None:
        return entry.name
    if entry.network.first != entry.network.last:
        raise ValueError(f'"{text}" is a network; ask for one address')
    return entry.network


def verdict(image: Image, board: Switchboard, text: str, qtype: str = "A", client: str = "", acl: Acl | None = None) -> Told:
    """What happens to queries for a name, or packets to an address."""
    asked = subject(text)
    _check_qtype(qtype)
    told: Told = {"subject": text, "kind": "address" if isinstance(asked, Network) else "name"}
    if client:
        told["client"] = client
        if acl is not None and not acl.allows(client):
            told["client_refused"] = "dns.allow_from does not hold this client: its queries get no answer"
    if isinstance(asked, Network):
        claims = image.lookup_address(asked.first.to_bytes(4 if asked.family == 4 else 16))
    else:
        kind = special_kind(asked, ())
        if kind is not None:
            reason = f"a special-use name, answered here with rcode {kind.rcode} and never sent on ({SOURCES})"
            return told | {"verdict": "special", "reason": reason}
        claims = image.lookup(asked)
    return told | _judge(image, board, claims)


def _check_qtype(text: str) -> None:
    """ValueError unless this is a type by its mnemonic, or as TYPE1234 (RFC 3597)."""
    word = text.upper()
    digits = word.removeprefix("TYPE")
    numbered = digits != word and len(digits) < 6 and digits.isascii() and digits.isdecimal() and 0 < int(digits) < 1 << 16
    if word not in message.QTYPES and not numbered:
        raise ValueError(f'"{text}" is not a query type; known are {", ".join(message.QTYPES)}, others as TYPE1234')


def special(forward: Iterable[str]) -> Callable[[Name], bool]:
    """Whether a name comes before every list, where these zones have servers of their own."""
    zones = frozenset(map(names.from_text, forward))
    return lambda name: special_kind(name, zones) is not None


def _judge(image: Image, board: Switchboard, claims: Claims) -> Told:
    action, decision = board.choose(claims)
    if decision is not None:
        rest = [_decision(image, board, claim) for claim in claims if claim != decision]
        word = "blocked" if action is Action.BLOCK else "audited"
        return {"verdict": word, **_decision(image, board, decision), "also": rest}
    if policy.allows(image.classes, claims):
        return {"verdict": "allowed", **_decision(image, board, claims[0]), "also": []}
    if claims:
        off = [_decision(image, board, claim) for claim in claims]
        return {"verdict": "passed", "reason": "what claims it is not switched on", "also": off}
    return {"verdict": "passed", "reason": "no list claims it", "also": []}


def _decision(image: Image, board: Switchboard, decision: Decision) -> Told:
    class_, source = image.classes[decision.class_], image.sources[decision.source]
    return {
        "app": class_.app, "function": class_.function, "list": source.path, "line": decision.line, "rule": decision.rule,
        "on": board.actions[decision.class_] is not Action.PASS,
    }  # fmt: skip


def matching(found: Iterable[List], asked: Network | Name) -> list[Told]:
    """Every line of every list that speaks of a name or address, the more specific first."""
    rows: list[tuple[int, Told]] = []
    for list_ in found:
        usual = () if isinstance(asked, Network) else map(list_.usual_entry, list_.usual.rows(names.suffixes(asked)))
        for entry in (*list_.odd, *usual):
            weight = _weight(entry, asked)
            if weight:
                source = list_.source
                told = {
                    "list": source.path,
                    "line": entry.line,
                    "rule": entry.text,
                    "app": source.app,
                    "function": source.function,
                }
                rows.append((weight, told))
    return [told for _, told in sorted(rows, key=lambda row: -row[0])]


def _weight(entry: policy.Entry, asked: Network | Name) -> int:
    """How specific a matching entry is; 0 when it does not match."""
    if isinstance(asked, Network):
        network = entry.network
        if network is None or network.family != asked.family or not network.first <= asked.first <= network.last:
            return 0
        return (1 << 129) - (network.last - network.first)
    if entry.network is not None:
        return 0
    if entry.kind is policy.EntryKind.EXACT:
        return 2 * len(asked) + 1 if entry.name == asked else 0
    return 2 * len(entry.name) if any(suffix == entry.name for suffix in names.suffixes(asked)) else 0


def add_learnt(told: Told, about: Told) -> None:
    """What the guardian knows of an address beside the lists: whether a name led there, and who else lives there."""
    told |= {key: about[key] for key in ("passing", "names", "spared") if key in about}
    learnt = about.get("learnt")
    if learnt is not None and told["verdict"] == "passed":
        told |= {key: learnt[key] for key in ("app", "function", "list", "line", "rule")}
        told |= {"verdict": "blocked", "learnt": learnt["name"]}


STALE = 180 * 86_400  # seconds after which a list of servers that come and go is called old
CHANGING = ("doh", "httpdns")


def _lists_of_servers(chosen: policy.Selection, rows: list[Told]) -> Iterator[str]:
    """The lists of servers behind a way round that are missing or old."""
    for function in CHANGING:
        mine = [row for row in rows if row["list"].startswith(f"{policy.BYPASS}/{function}.") and row["entries"]]
        if function not in chosen.bypass:
            continue
        if not mine:
            yield f"servers of {function}: there is no list {policy.BYPASS}/{function}.list"
        yield from (
            f"servers of {function} that came in the last {row['age'] // 86_400} days: {row['list']} is that old"
            for row in mine
            if row["age"] > STALE
        )


def uncovered(
    settings: Any, report: Told, listening: bool, lists_: list[Told], wall: Told, unpoliced: Sequence[str] = ()
) -> list[str]:
    """What the configuration leaves open, in words. `unpoliced`: interfaces whose clients, if any, are none of ours."""
    firewall, chosen = settings.firewall, settings.policy
    on = [app for app in report["apps"] if app["on"] and app["id"] != policy.BYPASS]
    found = []
    if chosen.mode is Action.AUDIT:
        found.append('nothing is blocked, only logged (policy.mode = "audit")')
    if not on:
        found.append("no app is switched on (policy.apps)")
    if not firewall.enabled:
        found.append("addresses, hard-coded resolvers and encrypted DNS: the firewall is off (firewall.enabled = false)")
    elif not firewall.lan:
        found.append("port 53 to other resolvers, DNS over TLS and over QUIC by port: no interface is named (firewall.lan)")
    elif not firewall.intercept_dns:
        found.append("port 53 to other resolvers (firewall.intercept_dns = false)")
    if firewall.enabled and unpoliced:
        found.append(f"clients behind {', '.join(unpoliced)}, if there are any: firewall.lan does not name them")
    if firewall.enabled:
        found += _not_learnt(firewall, wall.get("learning") or {})
        found += [f"open flows that the flowtable {each} forwards past all rules" for each in wall.get("flowtables", ())]
        nameless = [a["id"] for a in on if not any(f["on"] and f.get("networks") for f in a["functions"].values())]
        if nameless:
            found.append(f"hard-coded addresses of {', '.join(nameless)}: none are known for the functions that are on")
    found += _lists_of_servers(chosen, lists_)
    closed = [function for function in policy.BYPASS_FUNCTIONS if function not in chosen.bypass]
    if closed:
        found.append(f"ways round the filter that are left open: {', '.join(closed)} (policy.bypass)")
    if chosen.functions != "all":
        found.append(f"every function of the apps but {', '.join(chosen.functions)} (policy.functions)")
    apart = sum(
        f.get("shared_names", 0) + f.get("shared_networks", 0) for a in on if not a["shared"] for f in a["functions"].values()
    )
    if apart:
        found.append(f"{apart} entries that others share (policy.shared)")
    if not listening:
        found.append("no address is listened on")
    return found


def _not_learnt(firewall: Any, learning: Told) -> Iterator[str]:
    if not firewall.learn:
        yield "addresses that only DNS answers show (firewall.learn = false)"
        return
    if learning.get("proving"):
        yield f"addresses that only DNS answers show: for {learning['proving']} s yet they are noted and not blocked"
    if learning.get("trouble"):
        yield f"addresses learnt before a restart: they cannot be saved: {learning['trouble']}"
    spared = learning.get("spared") or ()
    if spared:
        yield f"{len(spared)} addresses behind blocked names that others use too (embargo status --json, firewall.learning)"
