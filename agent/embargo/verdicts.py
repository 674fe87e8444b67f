"""What a policy says of addresses, and of the reasons for which they were learnt, as the guardian asks it."""

import ipaddress
from collections.abc import Callable, Iterable

from embargo import names
from embargo.firewall import learning
from embargo.firewall.learning import Reason
from embargo.lists import lists
from embargo.lists.image import Image
from embargo.lists.policy import Action, Network, Switchboard
from embargo.names import Name

_RESERVED = tuple(ipaddress.ip_network(text) for text, _ in lists.RESERVED)


def judge(image: Image, board: Switchboard, *, learn: bool) -> Callable[[Reason], Reason | None]:
    """Tells why an address that was blocked for some reason is to be blocked today; None when it is not."""

    def why(reason: Reason) -> Reason | None:
        # what nobody claims itself was blocked for an alias that it led to
        claims = image.lookup(reason.name) or image.lookup(names.from_text(reason.rule.lstrip("=")))
        action, decision = board.choose(claims)
        if action is Action.PASS or decision is None:
            return None
        source = image.sources[decision.source]
        return Reason(reason.name, image.classes[decision.class_], source.path, decision.line, decision.rule)

    return why if learn else lambda reason: None


def names_blocked(image: Image, board: Switchboard) -> Callable[[Name], bool]:
    """Tells the names that are blocked or audited."""
    return lambda name: board.choose(image.lookup(name))[0] is not Action.PASS


def guard(image: Image, protected: Iterable[str]) -> Callable[[bytes], bool]:
    """Tells the addresses that are never blocked because of a name: special ones, ours and our networks', listed ones."""
    ranges = [_range(ipaddress.ip_network(text)) for text in protected] + [_range(network) for network in _RESERVED]
    special = learning.guard(ranges)
    return lambda address: special(address) or bool(image.lookup_address(address))


def blocks(image: Image, board: Switchboard) -> Callable[[bytes], bool]:
    """Tells the addresses that the lists block."""
    known: dict[bytes, bool] = {}

    def blocked(address: bytes) -> bool:
        found = known.get(address)
        if found is None:
            found = known[address] = board.choose(image.lookup_address(address))[0] is Action.BLOCK
        return found

    return blocked


def _range(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Network:
    return Network(network.version, int(network[0]), int(network[-1]))
