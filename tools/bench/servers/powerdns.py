"""PowerDNS Recursor: one thread, a response policy zone from a file, no validation, caches for every query of a run."""

import subprocess
from collections.abc import Iterable, Iterator, Sequence

from tools.bench.servers.base import ADDRESS, UPSTREAM_PORT, Running, Server, rpz_lines, rpz_zone

_CONFIG = """\
daemon=no
quiet=yes
loglevel=0
disable-syslog=yes
threads=1
pdns-distributes-queries=no
local-address={address}
local-port={port}
allow-from=127.0.0.0/8
dont-query=
dnssec=off
forward-zones-recurse=.={address}:{upstream}
max-cache-entries=1000000
max-packetcache-entries=1000000
max-mthreads=4096
security-poll-suffix=
socket-dir={directory}
write-pid=no
lua-config-file={directory}/policy.lua
"""


class PowerDNS(Server):
    name = "PowerDNS"
    port = 5404

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return rpz_lines(names)

    def prepare(self, names: Sequence[str]) -> None:
        rpz_zone(self.directory / "names.rpz", names)
        policy = f'rpzFile("{self.directory}/names.rpz", {{policyName="names"}})\n'
        (self.directory / "policy.lua").write_text(policy if names else "")
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        (self.directory / "recursor.conf").write_text(_CONFIG.format(**places))

    def command(self) -> list[str]:
        return ["pdns_recursor", f"--config-dir={self.directory}"]

    def reload(self, running: Running) -> bool:
        where = [f"--config-dir={self.directory}", f"--socket-dir={self.directory}", "--timeout=60"]
        return subprocess.run(["rec_control", *where, "reload-lua-config"], capture_output=True, check=False).returncode == 0

    @classmethod
    def version(cls) -> str:
        said = subprocess.run(["pdns_recursor", "--version"], capture_output=True, text=True, check=False)
        words = (said.stdout + said.stderr).partition("PowerDNS Recursor ")[2].split()
        return f"PowerDNS Recursor {words[0] if words else '?'}"
