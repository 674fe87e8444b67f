"""Why a name or an address is blocked or not: `embargo why`.

The verdict comes from the image and the switchboard, by the same look-ups that answer queries and fill the firewall. All
matching lines come from the lists themselves, so that an administrator also sees those that do not decide.
"""

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from embargo import names
from embargo.dns import message
from embargo.dns.acl import Acl
from embargo.dns.special import SOURCES
from embargo.dns.special import kind as special_kind
from embargo.lists import lists, policy
from embargo.lists.image import Image
from embargo.lists.pauses import Pause, until
from embargo.lists.policy import Action, Claims, Decision, List, Network, Selection, Switchboard
from embargo.names import Name
from embargo.report import AboutAddress, Claim, Line, Verdict


def subject(text: str) -> Network | Name:
    """The name or address in a text. ValueError if it is neither, with a hint."""
    entry = lists.parse_entry(text)
    if entry.exception or entry.kind is policy.EntryKind.EXACT:
        raise ValueError(f'"{text}" is a rule; ask for the name alone')
    if entry.network is None:
        return entry.name
    if entry.network.first != entry.network.last:
        raise ValueError(f'"{text}" is a network; ask for one address')
    return entry.network


def verdict(image: Image, board: Switchboard, text: str, qtype: str = "A", client: str = "", acl: Acl | None = None) -> Verdict:
    """The decision about queries for a name, or packets to an address. ValueError if the text is neither, or an unknown type.

    `client`, `acl`: whether this client is answered at all.
    """
    asked = subject(text)
    _check_qtype(qtype)
    check_client(client)
    result = Verdict(text, "address" if isinstance(asked, Network) else "name", "passed")
    if client:
        refused = "dns.allow_from does not include this client: its queries get no answer"
        result = replace(result, client=client, client_refused=None if acl is None or acl.allows(client) else refused)
    if isinstance(asked, Network):
        return _judge(result, image, board, image.lookup_address(asked.first.to_bytes(4 if asked.family == 4 else 16)))
    kind = special_kind(asked, ())
    if kind is not None:
        rcode = "NXDOMAIN" if kind.rcode == message.NXDOMAIN else "NOERROR"
        reason = f"a special-use name, answered by the agent itself ({rcode}), never forwarded ({SOURCES})"
        return replace(result, verdict="special", reason=reason)
    return _judge(result, image, board, image.lookup(asked))


def check_client(text: str) -> None:
    """ValueError unless it is an address, or empty."""
    try:
        ipaddress.ip_address(text or "::")
    except ValueError:
        raise ValueError(f'--client: "{text}" is not an address, write one as in 192.0.2.5 or 2001:db8::5') from None


def _check_qtype(text: str) -> None:
    """ValueError unless this is the mnemonic of a query type, or TYPE1234 (RFC 3597, section 5)."""
    word = text.upper()
    digits = word.removeprefix("TYPE")
    numbered = digits != word and len(digits) < 6 and digits.isascii() and digits.isdecimal() and 0 < int(digits) < 1 << 16
    if word not in message.QTYPES and not numbered:
        raise ValueError(f'"{text}" is not a query type; known are {", ".join(message.QTYPES)}, others as TYPE1234')


def special(forward: Iterable[str]) -> Callable[[Name], bool]:
    """A predicate: whether a name is special, and so decided before any list. `forward`: zones of [dns] forward."""
    zones = frozenset(map(names.from_text, forward))
    return lambda name: special_kind(name, zones) is not None


def _judge(result: Verdict, image: Image, board: Switchboard, claims: Claims) -> Verdict:
    action, decision = board.choose(claims)
    if decision is not None:
        others = tuple(_claim(image, board, claim) for claim in claims if claim != decision)
        word: Literal["blocked", "audited"] = "blocked" if action is Action.BLOCK else "audited"
        return _decided(result, word, _claim(image, board, decision), others)
    if policy.allows(image.classes, claims):
        return _decided(result, "allowed", _claim(image, board, claims[0]))
    off = tuple(_claim(image, board, claim) for claim in claims)
    keys = "policy.bypass" if all(claim.app == policy.BYPASS for claim in off) else "policy.apps, policy.functions"
    reason = f"only functions that are off list it ({keys})" if off else "no list claims it"
    return replace(result, reason=reason, also=off)


def by_answer(result: Verdict, image: Image, board: Switchboard, answer: str, decision: Decision, *, audit: bool) -> Verdict:
    """The verdict about a name that passes itself, extended by what its answer leads to: `answer`, which an entry claims."""
    word: Literal["blocked", "audited"] = "audited" if audit else "blocked"
    return replace(_decided(result, word, _claim(image, board, decision), result.also), reason=None, answer=answer)


def query_type(text: str) -> int:
    """The number of a query type, by mnemonic or as TYPE1234. ValueError for another text."""
    _check_qtype(text)
    word = text.upper()
    return message.QTYPES.get(word) or int(word.removeprefix("TYPE"))


def decider(result: Verdict) -> Claim | None:
    """The entry that decides; None if there is none."""
    if result.app is None or result.function is None or result.list is None or result.line is None or result.rule is None:
        return None
    return Claim(result.app, result.function, result.list, result.line, result.rule, bool(result.on))


def with_lines(result: Verdict, lines: Sequence[Line]) -> Verdict:
    """The verdict with a more precise reason, if the most specific line of the lists is why no entry claims the subject."""
    if result.verdict != "passed" or result.also or not lines:
        return result
    if lines[0].rule.startswith("!"):
        return replace(result, reason="an exception excludes it")
    if all(line.off for line in lines):
        return replace(result, reason="only a shared entry lists it, and shared entries are off (policy.shared)")
    if lines[0].off:
        return replace(result, reason="a shared entry sets it apart, and shared entries are off (policy.shared)")
    return result


def paused(result: Verdict, pauses: Sequence[Pause]) -> Verdict:
    """The verdict of a subject that only these pauses let pass, with the one that ends last as the reason."""
    if result.verdict != "passed" or not pauses:
        return result
    last = max(pauses, key=lambda pause: pause.until)
    what = f"app {last.app} is" if last.app else "everything is"
    return replace(result, reason=f"{what} paused{f' for {last.client}' if last.client else ''} until {until(last)}")


def _decided(
    result: Verdict, word: Literal["blocked", "audited", "allowed"], by: Claim, others: tuple[Claim, ...] = ()
) -> Verdict:
    return replace(
        result, verdict=word, app=by.app, function=by.function, list=by.list, line=by.line, rule=by.rule, on=by.on, also=others
    )


def _claim(image: Image, board: Switchboard, decision: Decision) -> Claim:
    class_, source = image.classes[decision.class_], image.sources[decision.source]
    on = board.actions[decision.class_] is not Action.PASS
    return Claim(class_.app, class_.function, source.path, decision.line, decision.rule, on)


def matching(lists_: Iterable[List], asked: Network | Name, selection: Selection) -> list[Line]:
    """All lines of all lists that match a name or address, the most specific first."""
    rows: list[tuple[int, Line]] = []
    for list_ in lists_:
        usual = () if isinstance(asked, Network) else map(list_.usual_entry, list_.usual.rows(names.suffixes(asked)))
        for entry in (*list_.odd, *usual):
            if weight := _weight(entry, asked):
                source = list_.source
                off = source.shared and not selection.shared_on(source.app)
                rows.append((weight, Line(source.path, entry.line, entry.text, source.app, source.function, off)))
    return [line for _, line in sorted(rows, key=lambda row: -row[0])]


def _weight(entry: policy.Entry, asked: Network | Name) -> int:
    """How specific a matching entry is; 0 if it does not match."""
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


def with_learnt(result: Verdict, about: AboutAddress) -> Verdict:
    """The verdict, extended by what the guardian knows about the address. Lists take precedence over learnt addresses."""
    result = replace(result, passing=about.passing, names=about.names, spared=about.spared)
    learnt = about.learnt
    if learnt is None or result.verdict != "passed":
        return result
    claim = Claim(learnt.app, learnt.function, learnt.list, learnt.line, learnt.rule, on=True)
    return replace(_decided(result, "blocked", claim, result.also), learnt=learnt.name, reason=None)
