"""What the probes of one run share: the policy in force, client and sink, what to try, and the results."""

import ipaddress
import random
from dataclasses import dataclass, field

from embargo.config import Config
from embargo.lists.image import Image
from embargo.lists.policy import Action, Switchboard
from embargo.verify.packets import Prober
from embargo.verify.results import Results
from embargo.verify.sandbox import Sandbox, SandboxError
from embargo.verify.targets import Targets

DOCUMENTATION = {4: ("198.51.100.0", "203.0.113.0", "192.0.2.0"), 6: ("2001:db8:fffe::", "2001:db8::")}  # RFC 5737, RFC 3849


@dataclass(frozen=True, slots=True)
class Session:
    """`own`: addresses of this gateway; `lan`, `intercept_dns`: as the running agent has them."""

    settings: Config
    image: Image
    board: Switchboard
    lan: tuple[str, ...]
    intercept_dns: bool
    sandbox: Sandbox
    prober: Prober
    own: frozenset[str]
    targets: Targets
    chance: random.Random
    results: Results = field(default_factory=Results)

    def free(self, version: int, skip: int = 0) -> str:
        """A documentation address that is neither listed nor this gateway's own. `skip`: how many such to pass over."""
        for text in DOCUMENTATION[version]:
            for number in range(61, 250):
                address = ipaddress.ip_address(text) + number
                if str(address) not in self.own and not self.image.lookup_address(address.packed):
                    if not skip:
                        return str(address)
                    skip -= 1
        raise SandboxError(f"no documentation address of IPv{version} is unlisted: none is left to prove that others pass")

    def skip_audited(self) -> None:
        """A row for each class that is only logged."""
        for class_, action in zip(self.image.classes, self.board.actions, strict=True):
            if action is Action.AUDIT:
                self.results.row(*class_, "everything", skipped="audit")
