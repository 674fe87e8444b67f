"""A stream of datagrams from the client through the gateway, counted by the kernel before and behind the rules."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from embargo.daemon.host.nftables import Nftables
from tools.rig import Rig, until

PORT = 9000
SECONDS = 60  # the sender ends by itself after so long
TABLE = "stream"

_SEND = """
import socket, sys, time
addresses = sys.argv[1:]
sockets = [socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) for address in addresses]
end = time.monotonic() + %d
while time.monotonic() < end:
    for _ in range(64):
        for sock, address in zip(sockets, addresses):
            try:
                sock.sendto(b"x" * 18, (address, %d))
            except OSError:
                pass  # the reject of an earlier one
""" % (SECONDS, PORT)  # noqa: UP031 # braces belong to the program


class Stream:
    """As fast as one process sends to each of the addresses in turn. `came` and `went` tell what the gateway saw of it."""

    def __init__(self, rig: Rig, kernel: Nftables, addresses: Sequence[str]) -> None:
        self._rig, self._kernel, self._addresses = rig, kernel, addresses
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._rig.run("gateway", "nft", self._rules())
        self._rig.run("internet", "nft", f"table inet {TABLE} {{ chain input {{ type filter hook input priority 0;\n"
                      f"udp dport {PORT} drop\n}}\n}}")  # fmt: skip # else the internet answers that nobody listens
        self._process = self._rig.start("client", sys.executable, "-c", _SEND, *self._addresses)
        until(lambda: min(self.came().values()) > 100, "the stream flows")
        return self

    def _rules(self) -> str:
        """Counters where a packet comes into the gateway and where it leaves it."""
        lines = [f"table inet {TABLE} {{"]
        lines += [f"counter {name} {{ }}" for hook in ("came", "went") for name in self._names(hook)]
        for hook, at, priority in (("came", "prerouting", -310), ("went", "postrouting", 310)):
            lines += [f"chain {hook} {{", f"type filter hook {at} priority {priority};"]
            for address, name in zip(self._addresses, self._names(hook), strict=True):
                lines.append(f'{"ip6" if ":" in address else "ip"} daddr {address} udp dport {PORT} counter name "{name}"')
            lines.append("}")
        return "\n".join([*lines, "}"])

    def _names(self, hook: str) -> list[str]:
        return [f"{hook}{number}" for number in range(len(self._addresses))]

    def _counts(self, hook: str) -> dict[str, int]:
        counters = self._kernel.counters(TABLE)
        return {address: counters[name][0] for address, name in zip(self._addresses, self._names(hook), strict=True)}

    def came(self) -> dict[str, int]:
        return self._counts("came")

    def went(self) -> dict[str, int]:
        return self._counts("went")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()


def number(address: str) -> int:
    """An address as the integer that elements hold."""
    return int.from_bytes(socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))
