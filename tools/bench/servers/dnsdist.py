"""dnsdist: a packet cache in front of the upstream, and a rule for the names. It is no resolver, only the fastest way there."""

from collections.abc import Iterable, Iterator, Sequence

from tools.bench.servers.base import ADDRESS, UPSTREAM_PORT, Server, first_line

_CONFIG = """\
setLocal("{address}:{port}")
setACL({{"127.0.0.0/8"}})
setSecurityPollSuffix("")
setMaxUDPOutstanding(65535)
newServer{{address="{address}:{upstream}", sockets=64, healthCheckMode="up"}}
getPool(""):setCache(newPacketCache(1000000))
names = newSuffixMatchNode()
for line in io.lines("{directory}/names.txt") do names:add(line) end
addAction(SuffixMatchNodeRule(names), RCodeAction(DNSRCode.NXDOMAIN))
"""


class Dnsdist(Server):
    name = "dnsdist"
    port = 5406

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return (f"{name}\n" for name in names)

    def prepare(self, names: Sequence[str]) -> None:
        with (self.directory / "names.txt").open("w") as file:
            file.writelines(self.list_lines(names))
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        (self.directory / "dnsdist.conf").write_text(_CONFIG.format(**places))

    def command(self) -> list[str]:
        return ["dnsdist", "--supervised", "--disable-syslog", "-C", f"{self.directory}/dnsdist.conf"]

    @classmethod
    def version(cls) -> str:
        return " ".join(first_line("dnsdist", "--version").split()[:2])
