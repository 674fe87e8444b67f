"""The text of an export: header, entries grouped by app and function, and the same entries as data."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from embargo.export.domains import adblock, domains, hosts
from embargo.export.draft import Draft, ExportedEntry
from embargo.export.effective import EffectivePolicy
from embargo.export.formats import FORMATS
from embargo.export.nft import nft
from embargo.export.resolvers import dnsmasq, unbound
from embargo.export.rpz import SERIAL, rpz

EXAMPLES = 3  # omitted entries that are named
KINDS = ("names blocked", "names excepted", "networks blocked", "networks excepted")
WRITERS: dict[str, Callable[[EffectivePolicy], Draft]] = {
    "rpz": rpz, "hosts": hosts, "domains": domains, "dnsmasq": dnsmasq, "unbound": unbound, "adblock": adblock, "nft": nft,
}  # fmt: skip


class Export(NamedTuple):
    text: str
    entries: tuple[ExportedEntry, ...]
    omitted: tuple[str, ...]  # what this policy contains and the format cannot express, as phrases


def render(policy: EffectivePolicy, format_: str, version: str, serial: int | None = None) -> Export:
    """The policy in one of FORMATS. Equal policies give equal text. `serial`: of a response policy zone."""
    comment, lacks = FORMATS[format_]
    draft = WRITERS[format_](policy)
    body = [*_grouped(policy, draft.entries, comment), *draft.tail]
    digest = hashlib.sha256("\n".join((*draft.head, *body)).encode()).digest()
    number = int.from_bytes(digest[:4]) if serial is None else serial
    omitted = [f"{what}: {_few(entries)}" for what, entries in draft.omitted.items()]
    if policy.audit:
        omitted.insert(0, 'all entries: policy.mode = "audit" blocks nothing')
    counted = Counter(
        KINDS[2 * (each.match == "network") + (not each.treatment.blocked)] for each in draft.entries if each.match
    )
    header = [
        f"Policy of Embargo {version}, written by `embargo export {format_}`",
        f"digest {digest.hex()[:16]}: {', '.join(f'{counted[kind]} {kind}' for kind in KINDS)}",
        *draft.notes,
        *(f"not exported: {text}" for text in (*omitted, *lacks)),
    ]
    head = (line.replace(SERIAL, str(number)) for line in draft.head)
    lines = [*(f"{comment} {line}" for line in header), *head, *body]
    return Export("\n".join((*lines, "")), tuple(each for each in draft.entries if each.match), tuple(omitted))


def _few(entries: list[str]) -> str:
    more = f" and {len(entries) - EXAMPLES} more" if len(entries) > EXAMPLES else ""
    return ", ".join(entries[:EXAMPLES]) + more


def _grouped(policy: EffectivePolicy, entries: Iterable[ExportedEntry], comment: str) -> Iterator[str]:
    """The lines below headings: one per app and function, exceptions of the apps last."""
    exceptions = len(policy.classes)
    groups: dict[int, list[str]] = {}
    for entry in entries:
        number = entry.treatment.decision.class_ if entry.treatment.decision else exceptions
        groups.setdefault(number, []).extend(entry.lines)
    for number in sorted(number for number, lines in groups.items() if lines):
        yield comment
        yield f"{comment} {policy.classes[number] if number < exceptions else 'exceptions'}"
        yield from groups[number]


def as_data(policy: EffectivePolicy, entries: Iterable[ExportedEntry]) -> list[dict[str, Any]]:
    """The entries as JSON values, each with the list and line that decide; no such line exists for an app's exception."""
    found = []
    for match, subject, treatment, _ in entries:
        verdict = "block" if treatment.blocked else treatment.verdict.value
        data: dict[str, Any] = {"entry": subject, "match": match, "verdict": verdict}
        data |= dict.fromkeys(("app", "function", "list", "line", "rule"))
        if treatment.decision is not None:
            source = policy.sources[treatment.decision.source]
            data |= {"app": source.app, "function": source.function, "list": source.path}
            data |= {"line": treatment.decision.line, "rule": treatment.decision.rule}
        found.append(data)
    return found
