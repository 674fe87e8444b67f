"""Screening an answer: what the policy decides about a name and about everything that its answer leads to.

A name that no list has may be an alias of a blocked one, or lead to a blocked address. So the question and every owner,
target, address and hint of an answer are looked up, before it is given out and again whenever the policy has changed.
Pure functions of rules, name and answer.
"""

from collections.abc import Iterable
from typing import NamedTuple

from embargo import names
from embargo.dns import message
from embargo.dns.judgement import Rules, unclaimed
from embargo.dns.message import Answer, Lead, Query
from embargo.lists import lists, policy
from embargo.lists.policy import Action, Claims, Decision
from embargo.names import Name


class Passing(NamedTuple):
    """Addresses that an allow-listed name leads to although a class claims them: the firewall is to let them pass."""

    name: Name
    addresses: tuple[bytes, ...]
    seconds: int  # for which clients may use the answer


class Screened(NamedTuple):
    """What the policy decides about an answer."""

    action: Action
    decision: Decision | None  # the entry that blocks or audits it
    answer: Answer  # without the authority and additional records, if these lead to something blocked
    passing: Passing | None = None
    uneventful: bool = False  # nothing to block, to let through, to log or to explain: the fast path may give it out as it is
    by_name: bool = True  # the decision is about a name, not about an address
    lead: str = ""  # the name or address in the answer that it is about, as text; empty: the question
    whole: bool = True  # no section was left out


class _Led(NamedTuple):
    """What the policy decides about the records of one section."""

    action: Action
    decision: Decision | None = None
    by_name: bool = True
    lead: bytes = b""  # what the decision is about: a name or an address
    allowed: tuple[bytes, ...] = ()  # addresses that allow-listed names lead to
    allowed_by: Name = names.ROOT  # the first of these names


def screen(rules: Rules, query: Query, answer: Answer) -> Screened:
    """The verdict about an answer to `query`. The first record that leads to something blocked decides.

    The question is looked up although it was before it was sent on: the rules may have changed since.
    """
    qname = query.qname
    if unclaimed(rules.image, qname, answer):
        return Screened(Action.PASS, None, answer, uneventful=not (rules.log_all or answer.ede))
    claims = rules.claims(qname, query.qtype)
    action, decision = rules.board.choose(claims)
    if action is Action.BLOCK:
        return Screened(action, decision, answer)
    if policy.allows(rules.image.classes, claims):  # it passes with all that it leads to
        addresses = [address for lead in answer.leads for address in lead.addresses]
        return Screened(Action.PASS, None, answer, _passing(rules, answer, qname, addresses))
    looked_up = {qname: claims}
    led = _led(rules, answer.leads, looked_up)
    if led.action is Action.BLOCK:
        return Screened(led.action, led.decision, answer, by_name=led.by_name, lead=_shown(led))
    # no client asked for the other sections: they are left out where they lead to something blocked
    whole = not answer.extra_leads or _led(rules, answer.extra_leads, looked_up).action is not Action.BLOCK
    return Screened(
        max(action, led.action),
        decision or led.decision,
        answer if whole else message.answer_only(answer),
        _passing(rules, answer, led.allowed_by, led.allowed),
        uneventful=whole and not led.allowed and not (decision or led.decision or rules.log_all or answer.ede),
        by_name=led.by_name or decision is not None,
        lead="" if decision else _shown(led),
        whole=whole,
    )


def _shown(led: _Led) -> str:
    """What the decision about a section is about, as text; empty without a decision."""
    if not led.lead:
        return ""
    if led.by_name:
        return names.to_text(led.lead)
    return lists.int_to_address(4 if len(led.lead) == 4 else 6, int.from_bytes(led.lead))


def _led(rules: Rules, leads: Iterable[Lead], looked_up: dict[Name, Claims]) -> _Led:
    """Where the records of a section lead. An allow-listed name passes with all that it leads to.

    `looked_up`: the claims of names so far, which this adds to.
    """
    image, choose = rules.image, rules.board.choose
    audited: Decision | None = None
    by_name, lead = True, b""
    passed: dict[Name, Name] = {}  # name → the allow-listed one that leads there
    allowed: list[bytes] = []
    allowed_by = names.ROOT
    for owner, targets, addresses in leads:
        for name in (owner, *targets):
            if name not in looked_up:
                looked_up[name] = image.lookup(name)
        if owner in passed or policy.allows(image.classes, looked_up[owner]):
            passed.update(dict.fromkeys(targets, passed.get(owner, owner)))
            if addresses and not allowed:
                allowed_by = passed.get(owner, owner)
            allowed += addresses
            continue
        claimed = [looked_up[owner], *(looked_up[target] for target in targets), *map(image.lookup_address, addresses)]
        for number, (action, decision) in enumerate(map(choose, claimed)):
            if action is Action.BLOCK:
                return _Led(action, decision, number <= len(targets), (owner, *targets, *addresses)[number])
            if decision is not None and audited is None:
                audited, by_name, lead = decision, number <= len(targets), (owner, *targets, *addresses)[number]
    return _Led(Action.AUDIT if audited else Action.PASS, audited, by_name, lead, tuple(allowed), allowed_by)


def _passing(rules: Rules, answer: Answer, name: Name, addresses: Iterable[bytes]) -> Passing | None:
    """Those of the addresses that are blocked otherwise, because this name leads to them."""
    image, choose = rules.image, rules.board.choose
    blocked = tuple(a for a in addresses if choose(image.lookup_address(a))[0] is Action.BLOCK)
    return Passing(name, blocked, max((seconds for _, seconds in answer.ttls), default=0)) if blocked else None


def behind(rules: Rules, qname: Name, answer: Answer) -> tuple[Name, Decision] | None:
    """The first blocked or audited name on the way from `qname` to the addresses of an answer of type A or AAAA, and its entry.

    Only these addresses are that name's: the hints of a service record belong to its owner's word alone, and a stranger's
    HTTPS record could name a blocked target beside the addresses of others.
    """
    for name in (qname, *(name for lead in answer.leads for name in (lead.owner, *lead.targets))):
        action, decision = rules.board.choose(rules.image.lookup(name))
        if action is not Action.PASS and decision is not None:
            return name, decision
    return None
