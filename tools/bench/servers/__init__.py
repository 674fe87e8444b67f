"""The servers that are compared, ours first. A further one is a further file here and its name in SERVERS."""

from tools.bench.servers.base import Server
from tools.bench.servers.bind import Bind
from tools.bench.servers.dnsdist import Dnsdist
from tools.bench.servers.dnsmasq import Dnsmasq
from tools.bench.servers.embargo import Embargo, Pure
from tools.bench.servers.powerdns import PowerDNS
from tools.bench.servers.unbound import Unbound

OURS: tuple[type[Server], ...] = (Embargo, Pure)
PEERS: tuple[type[Server], ...] = (Unbound, Dnsdist, PowerDNS, Dnsmasq, Bind)
SERVERS = (*OURS, *PEERS)
