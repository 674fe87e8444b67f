"""BIND as a forwarder with a response policy zone: one processor, no validation."""

import os
import random
import signal
import socket
from collections.abc import Iterable, Iterator, Sequence

from tools.bench.servers.base import (
    ADDRESS,
    NXDOMAIN,
    UPSTREAM_PORT,
    Probe,
    Running,
    Server,
    ask,
    first_line,
    rpz_lines,
    rpz_zone,
)

_CONFIG = """\
options {{
 directory "{directory}";
 listen-on port {port} {{ {address}; }};
 listen-on-v6 {{ none; }};
 pid-file none;
 session-keyfile none;
 managed-keys-directory "{directory}";
 forwarders {{ {address} port {upstream}; }};
 forward only;
 recursion yes;
 allow-query {{ 127.0.0.0/8; }};
 dnssec-validation no;
 recursive-clients 20000;
 max-cache-size 512m;
 notify no;
 {policy}
}};
controls {{ }};
logging {{ category default {{ null; }}; }};
{zone}
"""
_POLICY = 'response-policy { zone "rpz"; } qname-wait-recurse no;'
_ZONE = 'zone "rpz" {{ type primary; file "{directory}/names.rpz"; allow-query {{ none; }}; }};'


class Bind(Server):
    name = "BIND"
    port = 5405

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return rpz_lines(names)

    def prepare(self, names: Sequence[str]) -> None:
        rpz_zone(self.directory / "names.rpz", names)
        self._some = random.Random(1).sample(names, min(500, len(names)))
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        listed = {"policy": _POLICY, "zone": _ZONE.format(**places)} if names else {"policy": "", "zone": ""}
        (self.directory / "named.conf").write_text(_CONFIG.format(**places, **listed))

    def answers(self, sock: socket.socket, probe: Probe) -> bool:
        """It answers while it still takes its policy in, in no order: many names have to be asked for."""
        return super().answers(sock, probe) and all(ask(sock, name) == NXDOMAIN for name in self._some)

    def command(self) -> list[str]:
        return ["named", "-f", "-n", "1", "-c", f"{self.directory}/named.conf"]

    def reload(self, running: Running) -> bool:
        os.kill(running.pid, signal.SIGHUP)
        return True

    @classmethod
    def version(cls) -> str:
        return " ".join(first_line("named", "-v").split()[:2])
