"""Configuration lines for dnsmasq and Unbound."""

from embargo import names
from embargo.export.draft import (
    MAPPED,
    NAT64,
    SIX_TO_FOUR,
    Draft,
    escaped,
    inherited,
    networks,
    omit_addresses,
    record_type,
    usual_names,
)
from embargo.export.effective import BITS, UNLISTED, EffectivePolicy, Treatment, Verdict
from embargo.firewall import listing
from embargo.names import Name


def dnsmasq(policy: EffectivePolicy) -> Draft:
    """local= and address= block a name and all names below it, server= excepts them; *.name is the names below only."""
    draft = Draft()
    if policy.mode in ("nodata", "refused"):
        draft.notes.append(f"blocked names are answered NXDOMAIN: dnsmasq cannot answer {policy.mode}")
    states: dict[Name, Treatment] = {}
    for listed, text in usual_names(policy, draft):
        above = inherited(states, listed.name, UNLISTED)
        itself, below = listed.itself, listed.below
        states[listed.name] = below
        if not itself.differs(above) and not below.differs(above):
            continue
        own, wild = _dnsmasq_lines(policy, text, itself), _dnsmasq_lines(policy, f"*.{text}", below)
        if own == _dnsmasq_lines(policy, text, below):
            draft.add("suffix" if below.differs(above) else "exact", text, itself, own)
        elif below.differs(above):
            draft.add("exact", text, itself, own)
            draft.add("below", text, below, wild)
        else:
            draft.add("exact", text, itself, (*own, *wild))
    for each in policy.blocked_ranges:
        found = networks(each, MAPPED, NAT64, SIX_TO_FOUR)
        draft.add("network", str(each), each.treatment, (f"bogus-nxdomain={_network(*network)}" for network in found))
    for listed in policy.names if policy.blocked_ranges else ():
        if Verdict.ALLOW in (listed.itself.verdict, listed.below.verdict):
            draft.omit("allowed names whose answer contains a listed address", listed.rule)
    return draft


def _dnsmasq_lines(policy: EffectivePolicy, pattern: str, treatment: Treatment) -> list[str]:
    """The lines for one pattern. local= alone answers NXDOMAIN; next to addresses it keeps other types from being forwarded."""
    if not treatment.blocked:
        return [f"server=/{pattern}/#"]
    return [*(f"address=/{pattern}/{address}" for address in policy.answer(treatment)), f"local=/{pattern}/"]


def _network(family: int, first: int, length: int) -> str:
    address = (listing.four if family == 4 else listing.six)(first)
    return address if length == BITS[family] else f"{address}/{length}"


_ZONES = {"nxdomain": "always_nxdomain", "nodata": "always_nodata", "null": "always_null", "refused": "always_refuse"}


def unbound(policy: EffectivePolicy) -> Draft:
    """Local zones: each covers a name and all names below it, down to the next zone."""
    draft = Draft(head=["server:"])
    states: dict[Name, Treatment] = {}
    without = 0
    for listed in policy.names:
        above = inherited(states, listed.name, UNLISTED)
        itself, below = listed.itself, listed.below
        zone, shown = f'local-zone: "{escaped(listed.name)}."', names.to_text(listed.name)
        states[listed.name] = below
        if itself.blocked and not below.blocked:
            without += not policy.answer(itself)
            draft.add("exact", shown, itself, (f"{zone} transparent", *_local_data(policy, listed.name, itself)))
        elif below.blocked and not itself.blocked:
            draft.omit("names below a name that passes itself", listed.rule)
            states[listed.name] = itself
            if above.blocked:
                draft.add("suffix", shown, itself, (f"{zone} always_transparent",))
        elif not below.blocked:
            if below.differs(above):
                draft.add("suffix", shown, below, (f"{zone} always_transparent",))
        elif below.differs(above):
            data = _local_data(policy, listed.name, below) if policy.mode == "address" and policy.answer(below) else ()
            mode = "nxdomain" if below.verdict is Verdict.CANARY else policy.mode
            draft.add("suffix", shown, below, (f"{zone} {_ZONES.get(mode, 'redirect')}", *data))
    if without and policy.mode != "nodata":
        draft.notes.append(f"{without} names blocked without the names below them are answered NODATA, not {policy.mode}")
    omit_addresses(policy, draft)
    return draft


def _local_data(policy: EffectivePolicy, name: Name, treatment: Treatment) -> list[str]:
    """The answer of one name. A record of any type makes Unbound answer NODATA for all other types."""
    start, class_ = f"{escaped(name)}. {policy.ttl} IN", treatment.decision and policy.classes[treatment.decision.class_]
    found = [f'local-data: "{start} {record_type(address)} {address}"' for address in policy.answer(treatment)]
    return found or [f"local-data: '{start} TXT \"blocked by Embargo: {class_}\"'"]
