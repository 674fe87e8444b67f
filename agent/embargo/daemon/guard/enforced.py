"""What is enforced: the socket to nf_tables, the Spec whose rules are in the table, and the lock for changing them.

The guardian, the learnt addresses and the open flows share one. Small transactions (an element added or deleted) need no
lock: the kernel takes each of them whole. A change of the rules takes several steps and holds `changing` for all of them.
"""

import asyncio
import socket

from embargo.daemon.host.nftables import Nftables
from embargo.firewall.ruleset import Spec


class Enforced:
    """State that the parts of the guardian share. FirewallError without CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self.kernel = Nftables()
        self.changing = asyncio.Lock()
        self.spec: Spec | None = None  # None before the first order and after the last one; without its ranges
        self.kernel_generation = 0  # of the namespace's rulesets, at our own last look

    def use(self, sock: socket.socket) -> None:
        """Speak to the kernel by this socket. The supervisor keeps it too: the table has its owner while no guardian runs."""
        self.kernel.close()
        self.kernel = Nftables(sock)

    def look(self) -> None:
        """Remember the kernel's generation: what changes it from here on was another process."""
        self.kernel_generation = self.kernel.generation_id()
