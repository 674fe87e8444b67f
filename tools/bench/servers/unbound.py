"""Unbound as a forwarder: one thread, no validation (we do none either), room in its caches for every query of a run."""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence

from tools.bench.servers.base import ADDRESS, LOAD_CPU, UPSTREAM_PORT, Running, Server, first_line

_COMMON = """\
server:
 interface: {address}@{port}
 access-control: 127.0.0.0/8 allow
 num-threads: 1
 module-config: "iterator"
 username: ""
 chroot: ""
 directory: "{directory}"
 pidfile: ""
 use-syslog: no
 do-ip6: no
 do-not-query-localhost: no
 msg-cache-size: 64m
 rrset-cache-size: 128m
"""

_FORWARD = """\
include: "{directory}/zones.conf"
forward-zone:
 name: "."
 forward-addr: {address}@{upstream}
"""

_EVERYTHING = """\
 local-zone: "." redirect
 local-data: ". 3600 IN A 192.0.2.80"
"""


class Unbound(Server):
    name = "Unbound"
    port = 5402

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return (f' local-zone: "{name}" always_nxdomain\n' for name in names)

    def prepare(self, names: Sequence[str]) -> None:
        with (self.directory / "zones.conf").open("w") as file:
            file.writelines(self.list_lines(names))
        self._configure(_COMMON + _FORWARD)

    def _configure(self, text: str) -> None:
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        (self.directory / "unbound.conf").write_text(text.format(**places))

    def command(self) -> list[str]:
        return ["unbound", "-d", "-c", f"{self.directory}/unbound.conf"]

    def reload(self, running: Running) -> bool:
        os.kill(running.pid, signal.SIGHUP)
        return True

    @classmethod
    def version(cls) -> str:
        return first_line("unbound", "-V").replace("Version", "Unbound")


class Upstream(Unbound):
    """Who answers what is not blocked: every name has an address, none has to be looked for. Beside the load generator."""

    name = "upstream"
    port = UPSTREAM_PORT
    cpu = LOAD_CPU

    def prepare(self, names: Sequence[str]) -> None:
        self._configure(_COMMON + _EVERYTHING)
