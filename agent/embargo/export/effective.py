"""The effective policy: what is done about every listed name and address.

It is read from the image and the switchboard by the same look-ups that answer queries, so an export cannot disagree with the
agent. The treatment of a listed name has two parts: one for the name itself, one for all names below it down to the next
listed name.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from embargo import names
from embargo.config import Config
from embargo.firewall import listing, spans
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import BYPASS, Action, Claims, Class, Decision, Source, Switchboard
from embargo.names import Name

NULL_ADDRESSES = ("0.0.0.0", "::")
BITS = {4: 32, 6: 128}


class Verdict(enum.Enum):
    PASS = "pass"
    ALLOW = "allow"  # on the administrator's allow list: what the answer contains passes too
    BLOCK = "block"
    CANARY = "canary"  # blocked, always as NXDOMAIN: no other answer makes the program that asks turn its DNS off


class Treatment(NamedTuple):
    """What is done about a name or an address, and the entry that decides."""

    verdict: Verdict = Verdict.PASS
    decision: Decision | None = None

    @property
    def blocked(self) -> bool:
        """Whether it is blocked in any way."""
        return self.verdict in (Verdict.BLOCK, Verdict.CANARY)

    def differs(self, above: "Treatment") -> bool:
        """Whether it needs a line of its own below a name with the treatment `above`. What is allowed passes anyway."""
        return self.verdict is not above.verdict and (self.verdict, above.verdict) != (Verdict.PASS, Verdict.ALLOW)


UNLISTED = Treatment()


class ListedName(NamedTuple):
    """A listed name with its own treatment, and that of the names below it down to the next listed name."""

    name: Name
    itself: Treatment
    below: Treatment

    @property
    def rule(self) -> str:
        """The entry as it is written in a list; the name where no entry decides."""
        decision = self.itself.decision or self.below.decision
        return decision.rule if decision else names.to_text(self.name)


class ListedRange(NamedTuple):
    """Listed addresses, `first` to `last` inclusive as integers, that are blocked or allowed."""

    family: int  # 4 or 6
    first: int
    last: int
    treatment: Treatment

    def __str__(self) -> str:
        """A single address, a network where the range is one, otherwise first-last."""
        show = listing.four if self.family == 4 else listing.six
        if self.first == self.last:
            return show(self.first)
        networks = list(spans.networks(BITS[self.family], self.first, self.last))
        return f"{show(self.first)}/{networks[0][1]}" if len(networks) == 1 else f"{show(self.first)}-{show(self.last)}"


@dataclass(frozen=True, slots=True)
class EffectivePolicy:
    """The policy in force: apps, functions, bypass, shared lists, local lists and mode are already applied."""

    classes: tuple[Class, ...]
    sources: tuple[Source, ...]
    names: tuple[ListedName, ...]  # a name follows all names above it
    ranges: tuple[ListedRange, ...]
    audit: bool
    mode: str  # nxdomain | nodata | null | refused | address
    addresses: tuple[str, ...]  # the answer for a blocked name, of modes null and address
    ttl: int
    lan: tuple[str, ...]
    except_: tuple[str, ...]
    ports: tuple[Class, ...]  # the functions of `bypass` that block ports
    patterns: bool  # clear-text HTTPDNS queries are rejected, whatever their destination

    def answer(self, treatment: Treatment) -> tuple[str, ...]:
        """The addresses that a blocked name is answered with, if any."""
        return () if treatment.verdict is Verdict.CANARY else self.addresses

    @property
    def blocked_ranges(self) -> list[ListedRange]:
        """The ranges of addresses that are blocked."""
        return [each for each in self.ranges if each.treatment.blocked]


def read(image: Image, board: Switchboard, settings: Config, special: Callable[[Name], bool]) -> EffectivePolicy:
    """The policy of an image under a switchboard. `special`: names that are answered before any list is consulted."""

    def treatment(claims: Claims) -> Treatment:
        action, decision = board.choose(claims)
        if action is Action.BLOCK and decision is not None:
            canary = image.classes[decision.class_] in policy.CANARY
            return Treatment(Verdict.CANARY if canary else Verdict.BLOCK, decision)
        return Treatment(Verdict.ALLOW, claims[0]) if policy.allows(image.classes, claims) else UNLISTED

    mode = settings.dns.block_mode
    listed = [
        ListedName(name, treatment(itself), treatment(below)) for name, itself, below in image.listed() if not special(name)
    ]
    ranges = [ListedRange(f, first, last, treatment(claims)) for f in (4, 6) for first, last, claims in image.ranges(f)]
    acting = [class_ for class_, action in zip(image.classes, board.actions, strict=True) if action is Action.BLOCK]
    return EffectivePolicy(
        classes=image.classes,
        sources=image.sources,
        names=tuple(sorted(listed, key=lambda each: list(names.labels(each.name))[::-1])),
        ranges=tuple(each for each in ranges if each.treatment.decision is not None),
        audit=settings.policy.mode is Action.AUDIT,
        mode=mode if isinstance(mode, str) else "address",
        addresses=mode if isinstance(mode, tuple) else NULL_ADDRESSES if mode == "null" else (),
        ttl=settings.dns.block_ttl,
        lan=settings.firewall.lan,
        except_=settings.firewall.except_,
        ports=tuple(class_ for class_ in acting if class_.app == BYPASS and class_.function in policy.PORT_FUNCTIONS),
        patterns=Class(BYPASS, "httpdns") in acting,
    )
