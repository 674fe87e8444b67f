"""The servers that are compared, ours first. A further one is a further file here and its name in SERVERS."""

from tools.bench.servers.base import Server
from tools.bench.servers.dnsmasq import Dnsmasq
from tools.bench.servers.embargo import Embargo
from tools.bench.servers.unbound import Unbound

SERVERS: tuple[type[Server], ...] = (Embargo, Unbound, Dnsmasq)
