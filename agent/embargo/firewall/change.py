"""The order in which the kernel takes another ruleset, so that no packet is let through or lost on the way.

An interval set that is created, filled and used in one transaction serves an empty array for a moment, so that never
happens. A change is these transactions, one after the other:

    prepare     the table, the counters, the new sets (empty), and the new chains that their elements lead to
    fill        the elements of the new sets, in chunks, while no rule refers to these sets
    switch      the rules of all chains: this one is the change
    remains     a moment later, the sets and chains of the old rules. Not with the switch: deleting a set deactivates its
                elements at once, and a packet that is still on the old rules would find none (seen: one of 100,000 got through)

If the kernel refuses anything up to the switch, `additions` are deleted and the old rules were never touched. The names of
sets carry a generation, so the new ones stand beside the old ones; chains and counters keep theirs.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from embargo.firewall import nft, table
from embargo.firewall.nft import Message
from embargo.firewall.ruleset import Spec, judged, mark_chain, value_of
from embargo.firewall.spans import Spans

#: elements in one transaction: the kernel's commit lock is shared by the whole namespace, and a learnt address must not wait
CHUNK_ELEMENTS = 10_000


class Holding(NamedTuple):
    """What a table of the kernel holds, by name."""

    table: bool  # whether it exists
    sets: Sequence[str]
    chains: Mapping[str, bool]  # whether a hook leads there
    counters: Sequence[str]


NOTHING = Holding(False, (), {}, ())


def prepare(ruleset: table.Ruleset, old: Holding, flags: int = 0) -> Iterator[Message]:
    """Everything that can exist before it is used: table, counters, empty sets, the new chains that their elements lead to."""
    name = ruleset.table
    yield nft.new_table(name, flags)
    for counter in ruleset.counters:
        yield nft.new_counter(name, counter)
    for number, each in enumerate(ruleset.sets, start=1):
        yield nft.new_set(name, each, number)
    targets = {chain for each in ruleset.sets for chain in each.spans}
    targets |= {
        jump.chain for chain in ruleset.chains if chain.name in targets
        for rule in chain.rules for jump in rule.expressions if isinstance(jump, table.Jump)
    }  # fmt: skip
    fresh = [chain for chain in ruleset.chains if chain.name in targets and chain.name not in old.chains]
    yield from (nft.new_chain(name, chain) for chain in fresh)
    yield from (nft.new_rule(name, chain.name, rule) for chain in fresh for rule in chain.rules)


def fill(ruleset: table.Ruleset) -> Iterator[list[Message]]:
    """The elements, CHUNK_ELEMENTS of a set in one transaction."""
    for each in ruleset.sets:
        if each.words:
            yield nft.words(ruleset.table, each)
        batch: list[Message] = []
        room = CHUNK_ELEMENTS
        for chain, ranges in each.spans.items():
            at = 0
            while at < len(ranges.firsts):
                part = slice(at, at + room)
                taken = Spans(ranges.firsts[part], ranges.lasts[part])
                batch += nft.filling(ruleset.table, each, chain, taken)
                at, room = at + len(taken.firsts), room - len(taken.firsts)
                if not room:
                    yield batch
                    batch, room = [], CHUNK_ELEMENTS
        if batch:
            yield batch


def switch(ruleset: table.Ruleset, old: Holding) -> Iterator[Message]:
    """The change: the rules of every chain, and none any more in a hook that the new rules leave alone."""
    name = ruleset.table
    for chain in ruleset.chains:
        yield nft.new_chain(name, chain)
    hooked = [chain for chain, has_hook in old.chains.items() if has_hook]
    for chain_name in dict.fromkeys([*hooked, *(chain.name for chain in ruleset.chains)]):
        yield nft.flush_chain(name, chain_name)
    for chain in ruleset.chains:
        for rule in chain.rules:
            yield nft.new_rule(name, chain.name, rule)


def remains(ruleset: table.Ruleset, old: Holding) -> Iterator[Message]:
    """Delete what the old rules used and the new ones do not."""
    name = ruleset.table
    sets, chains = {each.name for each in ruleset.sets}, {chain.name for chain in ruleset.chains}
    unused = [chain for chain in old.chains if chain not in chains]
    yield from (nft.flush_chain(name, chain) for chain in unused)  # before the sets: their rules refer to these
    yield from (nft.delete_set(name, each) for each in old.sets if each not in sets)
    yield from (nft.delete_chain(name, chain) for chain in unused)  # after the sets: their elements lead there


def additions(table_name: str, old: Holding, now: Holding) -> Iterator[Message]:
    """Delete what a change added that was refused."""
    if not old.table:
        if now.table:
            yield nft.delete_table(table_name)
        return
    chains = [chain for chain in now.chains if chain not in old.chains]
    yield from (nft.delete_set(table_name, each) for each in now.sets if each not in old.sets)
    yield from (nft.flush_chain(table_name, chain) for chain in chains)
    yield from (nft.delete_chain(table_name, chain) for chain in chains)
    yield from (nft.delete_counter(table_name, counter) for counter in now.counters if counter not in old.counters)


def judge_again(table_name: str, old: Spec, new: Spec) -> Iterator[Message]:
    """Put another judgement in force, in one transaction: flows that the old one let through meet all rules once more."""
    name = f"judged_{new.generation}"
    now, before = (value_of(each.judgement, each.ct_mark) for each in (new, old))
    for accept, marks in judged(now).items():
        yield from nft.filling(table_name, table.Set(name, "mark", vmap=True), accept, marks)
    yield from nft.delete_elements(table_name, name, (struct.pack("=I", before),))
    chain = mark_chain(new)
    yield nft.flush_chain(table_name, chain.name)
    yield from (nft.new_rule(table_name, chain.name, rule) for rule in chain.rules)
