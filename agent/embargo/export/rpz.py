"""A response policy zone (draft-vixie-dnsop-dns-rpz), with names relative to its own name.

Its wildcards are those of DNS (RFC 4592): a wildcard does not apply below a name that exists, and every name above a name with
a line exists. The writer therefore repeats the wildcard's content at these names.
"""

import re
from collections.abc import Iterator

from embargo import names
from embargo.export.draft import NAT64, SIX_TO_FOUR, Draft, escaped, inherited, networks, parents, record_type
from embargo.export.effective import UNLISTED, EffectivePolicy, ListedName, Treatment, Verdict
from embargo.firewall import listing
from embargo.names import Name

ZONE_ROOM = 40  # octets left for the zone's own name, which is chosen where it is loaded

SERIAL = "@serial@"  # replaced when the digest of the rest is known


def rpz(policy: EffectivePolicy) -> Draft:
    """The zone of a policy."""
    draft = Draft()
    draft.head = [
        f"$TTL {policy.ttl}",
        f"@ SOA localhost. hostmaster.localhost. {SERIAL} 3600 600 604800 {policy.ttl}",
        "@ NS localhost.",
    ]
    if policy.mode == "refused":
        draft.notes.append("blocked names are answered NXDOMAIN: a response policy zone cannot answer refused")
    _add_names(policy, draft)
    for each in policy.blocked_ranges:
        owners = [_address_owner(*network) for network in networks(each, NAT64, SIX_TO_FOUR)]  # IPv4 owners match MAPPED too
        draft.add("network", str(each), each.treatment, (
            line for owner in owners for line in _records(policy, owner, each.treatment)
        ))  # fmt: skip
    return draft


def _add_names(policy: EffectivePolicy, draft: Draft) -> None:
    no_hosts = 0
    states: dict[Name, Treatment | None] = {}  # content of the wildcard below a name; None: no wildcard
    for listed in _possible_names(policy, draft):
        wildcard = inherited(states, listed.name, None)
        above = wildcard or UNLISTED
        if not listed.itself.differs(above) and not listed.below.differs(above):
            continue
        no_hosts += bool(policy.addresses) and not _HOST.fullmatch(escaped(listed.name))
        for parent in parents(listed.name) if wildcard else ():
            if parent in states:
                break
            states[parent] = above
            draft.add("", "", above, _pair(policy, parent, above, above))
        # a name that passes needs no line where no wildcard applies, and without one its answer is still checked
        itself, below = (treatment if wildcard or treatment.verdict is not Verdict.PASS else None for treatment in listed[1:])
        states[listed.name] = below
        shown = names.to_text(listed.name)
        if itself and below and itself.verdict is below.verdict:
            draft.add("suffix", shown, below, _pair(policy, listed.name, itself, below))
            continue
        if itself:
            draft.add("exact", shown, itself, _pair(policy, listed.name, itself, None))
        if below:
            draft.add("below", shown, below, _pair(policy, listed.name, None, below))
    if no_hosts:
        draft.notes.append(f"{no_hosts} names that are not host names are answered NXDOMAIN: BIND rejects addresses for them")


def _possible_names(policy: EffectivePolicy, draft: Draft) -> Iterator[ListedName]:
    """The listed names that a zone can contain."""
    for listed in policy.names:
        if b"*" in names.labels(listed.name):
            draft.omit("names with a label *, which a zone reads as a wildcard", listed.rule)
        elif len(listed.name) + 2 + ZONE_ROOM > names.MAX_NAME:
            draft.omit("names that are too long for a zone", listed.rule)
        else:
            yield listed


def _pair(policy: EffectivePolicy, name: Name, itself: Treatment | None, below: Treatment | None) -> Iterator[str]:
    """The records of a name, and of the wildcard below it."""
    text = escaped(name)
    for owner, treatment in ((text, itself), (f"*.{text}", below)):
        if treatment:
            yield from _records(policy, owner, treatment)


def _records(policy: EffectivePolicy, owner: str, treatment: Treatment) -> list[str]:
    if not treatment.blocked:
        return [f"{owner} CNAME rpz-passthru."]
    if (answer := policy.answer(treatment)) and _HOST.fullmatch(owner):
        return [f"{owner} {record_type(address)} {address}" for address in answer]
    return [f"{owner} CNAME {'*.' if policy.mode == 'nodata' and treatment.verdict is Verdict.BLOCK else '.'}"]


#: names that may have addresses: BIND rejects a zone with addresses at other names (check-names)
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def _address_owner(family: int, first: int, length: int) -> str:
    """The owner name of a network: the prefix length, then the address reversed, "zz" in place of "::"."""
    if family == 4:
        words = listing.four(first).split(".")
    else:
        before, compressed, after = listing.six(first).partition("::")
        words = [*before.split(":"), *(["zz", *after.split(":")] if compressed else [])]
    return ".".join((str(length), *(word for word in reversed(words) if word), "rpz-ip"))
