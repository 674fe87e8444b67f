"""Lists of names: hosts files, lists of domains, and AdGuard's syntax."""

from embargo.export.draft import Draft, inherited, omit_addresses, usual_names
from embargo.export.effective import NULL_ADDRESSES, UNLISTED, EffectivePolicy, Treatment, Verdict
from embargo.names import Name


def hosts(policy: EffectivePolicy) -> Draft:
    """hosts(5): an address and a name per line. Covers the listed names only, not the names below them."""
    draft = Draft()
    addresses = policy.addresses or NULL_ADDRESSES
    if not policy.addresses:
        where = " and ".join(NULL_ADDRESSES)
        draft.notes.append(f"a hosts file cannot answer {policy.mode}: blocked names resolve to {where}")
    for listed, text in usual_names(policy, draft):
        if Verdict.CANARY in (listed.itself.verdict, listed.below.verdict):
            draft.omit("names that have an effect only if answered NXDOMAIN", listed.rule)
            continue
        if listed.itself.blocked:
            draft.add("exact", text, listed.itself, (f"{address} {text}" for address in addresses))
        if listed.below.blocked:
            draft.omit("names below a listed name", listed.rule)
    omit_addresses(policy, draft)
    return draft


def domains(policy: EffectivePolicy) -> Draft:
    """A name per line, which includes all names below it."""
    draft = Draft()
    states: dict[Name, Treatment] = {}
    for listed, text in usual_names(policy, draft):
        above = inherited(states, listed.name, UNLISTED)
        itself, below = listed.itself, listed.below
        states[listed.name] = below
        if below.blocked and not above.blocked:
            draft.add("suffix", text, below, (text,))
        if above.blocked and not below.blocked:
            _except(draft, text, below)
        elif below.blocked and not itself.blocked:
            _except(draft, f"={text}", itself)
        if itself.blocked and not below.blocked:
            draft.omit("names blocked without the names below them", listed.rule)
    omit_addresses(policy, draft)
    return draft


def _except(draft: Draft, entry: str, treatment: Treatment) -> None:
    """The format has no exceptions: write one as a comment, for the other software's allow list."""
    draft.omit("exceptions, written as comments: add them to the other software's allow list", entry)
    draft.add("", entry, treatment, (f"# {entry}",))


def adblock(policy: EffectivePolicy) -> Draft:
    """AdGuard: `||name^` blocks, `@@||name^` excepts regardless of position; $important overrides both, `@@` with it all."""
    draft = Draft()
    ranks: dict[Name, int] = {}  # of the line that decides below a name: 0 none, odd blocks, even excepts; the higher wins
    for listed, text in usual_names(policy, draft):
        rank = _override(draft, "suffix", f"||{text}^", text, listed.below, inherited(ranks, listed.name, 0))
        ranks[listed.name] = rank
        _override(draft, "exact", f"|{text}^", text, listed.itself, rank)
    lines = [line for entry in draft.entries for line in entry.lines]
    if count := sum("||" not in line or "$" in line for line in lines):
        draft.notes.append(
            f"{count} lines with |name^ or $important are understood by AdGuard only; others (Pi-hole) ignore them"
        )
    omit_addresses(policy, draft)
    return draft


def _override(draft: Draft, match: str, pattern: str, text: str, treatment: Treatment, rank: int) -> int:
    """Add a line that overrides those of `rank`, if one is needed. Returns the rank that decides then."""
    if treatment.blocked == bool(rank % 2) and (treatment.verdict is not Verdict.ALLOW or rank):
        return rank
    wanted = rank + 1 if treatment.blocked != bool(rank % 2) else 2
    if wanted > 4:
        draft.omit("names blocked inside exceptions inside exceptions", text)
        return rank
    line = ("" if treatment.blocked else "@@") + pattern + ("$important" if wanted > 2 else "")
    draft.add(match, text, treatment, (line,))
    return wanted
