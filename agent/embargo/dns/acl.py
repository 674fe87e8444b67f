"""Which clients are answered. Addresses are text, the way sockets give them."""

import ipaddress
from collections.abc import Sequence

MEMO = 4096  # clients whose result is remembered; forged addresses must not fill memory


class Acl:
    """Networks, less the networks `but`."""

    def __init__(self, networks: Sequence[str], *, but: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._but = [ipaddress.ip_network(network) for network in but]
        self._memo: dict[str, bool] = {}

    def __len__(self) -> int:
        """Clients whose result is remembered."""
        return len(self._memo)

    def allows(self, client: str) -> bool:
        """Whether a client is in one of the networks. An IPv4-mapped IPv6 address counts as the IPv4 address in it."""
        allowed = self._memo.get(client)
        if allowed is None:
            address = ipaddress.ip_address(client.partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            allowed = any(address in network for network in self._networks) and not any(
                address in network for network in self._but
            )
            if len(self._memo) >= MEMO:
                self._memo.clear()
            self._memo[client] = allowed
        return allowed
