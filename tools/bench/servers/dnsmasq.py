"""dnsmasq: its cache as large as its manual thinks sensible, and as many queries on the way as the load generator has."""

from collections.abc import Iterable, Iterator, Sequence

from tools.bench.servers.base import ADDRESS, UPSTREAM_PORT, Server, first_line

_CONFIG = """\
listen-address={address}
port={port}
bind-interfaces
no-resolv
no-hosts
user=root
pid-file=
log-facility={directory}/messages
server={address}#{upstream}
cache-size=10000
dns-forward-max=2000
conf-file={directory}/names.conf
"""


class Dnsmasq(Server):
    name = "dnsmasq"
    port = 5403

    @staticmethod
    def list_lines(names: Iterable[str]) -> Iterator[str]:
        return (f"address=/{name}/\n" for name in names)

    def prepare(self, names: Sequence[str]) -> None:
        with (self.directory / "names.conf").open("w") as file:
            file.writelines(self.list_lines(names))
        places = {"address": ADDRESS, "port": self.port, "upstream": UPSTREAM_PORT, "directory": self.directory}
        (self.directory / "dnsmasq.conf").write_text(_CONFIG.format(**places))

    def command(self) -> list[str]:
        return ["dnsmasq", "--keep-in-foreground", f"--conf-file={self.directory}/dnsmasq.conf"]

    @classmethod
    def version(cls) -> str:
        return first_line("dnsmasq", "--version").partition("  ")[0].replace("Dnsmasq version", "dnsmasq")
