"""What the supervisor makes of the resolvers' reports."""

from types import SimpleNamespace
from typing import Any, cast

from embargo.daemon.resolve.orders import Counted
from embargo.daemon.supervise.health import Health
from embargo.dns.upstream import server
from embargo.report import UpstreamStats

IN_USE, INVENTED = "udp://192.0.2.53:53", "udp://203.0.113.9:53"


def row(name: str, *, healthy: bool) -> UpstreamStats:
    return UpstreamStats(name, 1, 1, healthy, 0.0, "did not answer", plain=False)


def test_upstreams_that_a_resolver_invents_are_no_event() -> None:
    written: list[dict[str, Any]] = []
    agent = SimpleNamespace(
        settings=SimpleNamespace(dns=SimpleNamespace(forward=())),
        around=SimpleNamespace(upstreams=(server(IN_USE),)),
        journal=SimpleNamespace(event=written.append),
    )
    health = Health(cast(Any, agent))
    health._note_upstreams([Counted({}, {}, {}, (row(IN_USE, healthy=False), row(INVENTED, healthy=False)))])
    health._note_upstreams([Counted({}, {}, {}, (row(IN_USE, healthy=True), row(INVENTED, healthy=True)))])
    assert [(event["server"], event["state"]) for event in written] == [(IN_USE, "down"), (IN_USE, "up")]
