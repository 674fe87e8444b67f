"""What to try: every name and range that is blocked, or a sample for each class.

A listed name is queried itself and with a label below it, each with the decision that the look-up in the image gives.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from embargo import names
from embargo.lists.image import Image
from embargo.lists.policy import Action, Class, Decision, Switchboard
from embargo.names import Name

BELOW = b"\x0eembargo-verify"  # a label below listed names


class Target(NamedTuple):
    """A listed name, or a range of addresses, with the entry that decides."""

    decision: Decision
    name: Name = names.ROOT
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class Targets:
    """What is blocked, by class: names, and ranges by class and family."""

    names: dict[Class, list[Target]]
    ranges: dict[tuple[Class, int], list[Target]]


def find(image: Image, board: Switchboard, samples: int, chance: random.Random) -> Targets:
    """Everything that is blocked, or at most `samples` names and ranges of each class if it is not 0."""
    found = Targets({}, {})
    taken: _Sample[Class] = _Sample(samples, chance)
    for name, itself, below in image.listed():
        for claims, asked in ((itself, name), (below, Name(BELOW + name))):
            action, decision = board.choose(claims)
            if action is Action.BLOCK and decision is not None and len(asked) <= names.MAX_NAME:
                taken.add(image.classes[decision.class_], Target(decision, asked))
    found.names = taken.kept
    ranges: _Sample[tuple[Class, int]] = _Sample(samples, chance)
    for family in (4, 6):
        for first, last, claims in image.ranges(family):
            action, decision = board.choose(claims)
            if action is Action.BLOCK and decision is not None:
                ranges.add((image.classes[decision.class_], family), Target(decision, first=first, last=last))
    found.ranges = ranges.kept
    return found


K = TypeVar("K")


class _Sample(Generic[K]):
    """At most `size` targets per key, each with the same probability (reservoir sampling); 0: all."""

    def __init__(self, size: int, chance: random.Random) -> None:
        self._size = size
        self._chance = chance
        self._seen: Counter[K] = Counter()
        self.kept: defaultdict[K, list[Target]] = defaultdict(list)

    def add(self, key: K, target: Target) -> None:
        self._seen[key] += 1
        kept = self.kept[key]
        if not self._size or len(kept) < self._size:
            kept.append(target)
        elif (place := self._chance.randrange(self._seen[key])) < self._size:
            kept[place] = target
