"""Decisions of a policy about addresses, and about the reasons for which they were learnt. The guardian uses them."""

import ipaddress
from collections.abc import Callable, Iterable

from embargo.firewall import learning
from embargo.firewall.learning import Reason
from embargo.lists import lists, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, Claims, Network, Switchboard
from embargo.names import Name

_RESERVED = tuple(ipaddress.ip_network(text) for text, _ in lists.RESERVED)


def why(image: Image, board: Switchboard) -> Callable[[Name], Reason | None]:
    """A function of a name: why the addresses behind it are blocked or audited, or None if they are not."""

    def why(name: Name) -> Reason | None:
        action, decision = board.choose(image.lookup(name))
        if action is Action.PASS or decision is None or image.classes[decision.class_] in learning.UNLEARNT:
            return None
        source = image.sources[decision.source]
        return Reason(name, image.classes[decision.class_], source.path, decision.line, decision.rule)

    return why


def judge(image: Image, board: Switchboard, *, learn: bool) -> Callable[[Reason], Reason | None]:
    """A function of the reason for which an address was blocked: the present reason, or None if it is to be blocked no longer.

    `learn`: whether [firewall] learn is on.
    """
    now = why(image, board)
    return lambda reason: now(reason.name) if learn else None


def allows(image: Image) -> Callable[[Name], bool]:
    """A predicate: whether the administrator's allow list has a name."""
    return lambda name: policy.allows(image.classes, image.lookup(name))


def names_blocked(image: Image, board: Switchboard) -> Callable[[Name], bool]:
    """A predicate: whether a name is blocked or audited."""
    return lambda name: board.choose(image.lookup(name))[0] is not Action.PASS


def guard(image: Image, board: Switchboard, protected: Iterable[str]) -> Callable[[bytes], bool]:
    """A predicate: whether an address is never blocked because of a name: special, `protected`, or decided by a list.

    `protected`: networks. A list of a class that is off decides nothing: most addresses of the catalogue are in such lists.
    """
    ranges = [_range(ipaddress.ip_network(text)) for text in protected] + [_range(network) for network in _RESERVED]
    special = learning.guard(ranges)

    def decided(claims: Claims) -> bool:
        return policy.allows(image.classes, claims) or board.choose(claims)[0] is not Action.PASS

    return lambda address: special(address) or decided(image.lookup_address(address))


def blocks(image: Image, board: Switchboard) -> Callable[[bytes], bool]:
    """A predicate: whether the lists block an address. Results are cached."""
    cache: dict[bytes, bool] = {}

    def blocked(address: bytes) -> bool:
        result = cache.get(address)
        if result is None:
            result = cache[address] = board.choose(image.lookup_address(address))[0] is Action.BLOCK
        return result

    return blocked


def _range(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Network:
    return Network(network.version, int(network[0]), int(network[-1]))
