"""A server that failed more than a thousand times in a row made a power of two that no float can hold, and every query hung."""

from embargo import names
from embargo.dns.upstream import LAST_PENALTY, Server, Upstreams


def test_an_outage_may_last() -> None:
    server = Server("192.0.2.1", 53)
    upstreams = Upstreams((server,))
    for second in range(3000):
        upstreams.failed(server, "refused", names.from_text(f"z{second % 5}.test"), float(second), float(second))
    assert upstreams.health[server].until == 2999.0 + LAST_PENALTY
