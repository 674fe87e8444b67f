"""Metrics for Prometheus: the numbers of `status` in its text format 0.0.4, over HTTP on `[metrics] listen`.

Labels name apps, functions and upstreams. No label names a client, a domain name or a rule: their number is unbounded.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator

from embargo.daemon.ask import status
from embargo.daemon.ask.guests import Guests
from embargo.daemon.ask.orders import FirewallStatus, Status
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.supervisor import Supervisor

MAX_REQUEST = 8 << 10  # octets
CLIENT_SECONDS = 2.0  # for a client to send its request, and to read its answer
MAX_CLIENTS = 16  # at the same time; of more, those are disconnected that send nothing
_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]  # labels, value


def text(status: Status) -> str:
    """The metrics in Prometheus text format 0.0.4."""
    out = []
    for name, help_, samples in _metrics(status):
        kind = "counter" if name.endswith("_total") else "gauge"
        out += [f"# HELP embargo_{name} {help_}", f"# TYPE embargo_{name} {kind}"]
        for labels, value in samples:
            written = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            out.append(f"embargo_{name}{{{written}}} {_number(value)}" if written else f"embargo_{name} {_number(value)}")
    return "\n".join(out) + "\n"


def _number(value: float) -> str:
    """All digits of a number: a rounded counter would stand still and then jump."""
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _metrics(status: Status) -> Iterator[tuple[str, str, Iterable[Sample]]]:
    """(name without the prefix `embargo_`, help, samples) of each metric."""
    counters, cache = status.counters, status.cache

    def one(value: float) -> list[Sample]:
        return [({}, value)]

    yield (
        "build_info",
        "Version and accelerator that are running.",
        [({"version": status.version, "accelerator": status.accelerator}, 1)],
    )
    yield "uptime_seconds", "Time since the agent started.", one(status.uptime)
    yield "generation", "Number of the policy in force.", one(status.generation)
    yield "names", "Listed names in force.", one(status.names)
    yield "networks", "Listed networks in force.", one(status.networks)
    yield "pauses", "Timed exceptions in force.", one(len(status.pauses))
    yield "list_problems", "Problems found in the lists in force.", one(len(status.problems))
    yield "reload_success", "Whether the last reload succeeded (1) or failed (0).", one(status.reload.ok)
    yield "reload_age_seconds", "Time since the last reload.", one(status.reload.ago)
    by_transport: list[Sample] = [({"transport": name}, counters.get(f"queries_{name}", 0)) for name in ("udp", "tcp")]
    yield "queries_total", "Queries received.", by_transport
    dropped: list[Sample] = [
        ({"reason": name.removeprefix("dropped_")}, count) for name, count in counters.items() if name.startswith("dropped_")
    ]
    yield "queries_dropped_total", "Queries that got no reply, by reason.", dropped
    yield "upstream_queries_total", "Queries sent to upstreams.", one(counters.get("upstream_queries", 0))
    yield "cache_hits_total", "Queries answered from the cache.", one(cache.get("hits", 0))
    yield "cache_misses_total", "Queries that the cache could not answer.", one(cache.get("misses", 0))
    yield "cache_stale_total", "Expired answers given because no upstream answered (RFC 8767).", one(cache.get("stale", 0))
    yield "cache_entries", "Answers in the cache.", one(cache.get("entries", 0))
    yield "cache_bytes", "Size of the cache.", one(cache.get("octets", 0))
    hits: list[Sample] = [
        ({"app": app.id, "function": name}, function.hits or 0)
        for app in status.apps
        for name, function in app.functions.items()
    ]
    yield "attempts_total", "Attempts to reach names and addresses of an app's function, blocked or audited.", hits
    upstreams = status.upstreams
    yield (
        "upstream_up",
        "Whether at least one worker considers the upstream healthy.",
        [({"server": upstream.server}, upstream.healthy) for upstream in upstreams],
    )
    yield (
        "upstream_asked_total",
        "Queries sent to the upstream.",
        [({"server": upstream.server}, upstream.asked) for upstream in upstreams],
    )
    yield (
        "upstream_failed_total",
        "Queries that the upstream did not answer.",
        [({"server": upstream.server}, upstream.failed) for upstream in upstreams],
    )
    yield (
        "upstream_rtt_seconds",
        "Smoothed round-trip time of the upstream.",
        [({"server": upstream.server}, upstream.milliseconds / 1000) for upstream in upstreams],
    )
    yield (
        "resolver_restarts_total",
        "Resolver processes started again after an unexpected end.",
        one(status.worker_restarts),
    )
    yield "resolvers", "Resolver processes.", one(len(status.workers) or status.inside)
    yield "events_lost_total", "Events that could not be written to the event log.", one(status.events.lost)
    yield "firewall_enabled", "Whether the firewall is enabled in the configuration.", one(status.firewall.enabled)
    if isinstance(status.firewall, FirewallStatus):
        yield from _firewall(status.firewall)


def _firewall(firewall: FirewallStatus) -> Iterator[tuple[str, str, Iterable[Sample]]]:
    addresses = firewall.learning.addresses if firewall.learning is not None else 0
    for name, help_, value in (
        ("firewall_present", "Whether the nftables table is in the kernel.", firewall.present),
        ("firewall_restored_total", "Times the table was restored after others changed it.", firewall.restored),
        (
            "firewall_guardian_restarts_total",
            "Guardian processes started again after an unexpected end.",
            firewall.guardian_restarts,
        ),
        ("firewall_connections_cut_total", "Open connections deleted because they were blocked.", firewall.cut),
        ("firewall_learnt_addresses", "Addresses blocked because a blocked name leads there.", addresses),
    ):
        yield name, help_, [({}, value)]


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def serve(agent: Supervisor) -> AsyncIterator[None]:
    """Serve metrics within the context, if [metrics] listen is set. StartError if the address cannot be used."""
    listen = agent.settings.metrics.listen
    if listen is None:
        yield
        return
    try:
        server = await asyncio.start_server(_Metrics(agent).client, listen.address, listen.port, limit=MAX_REQUEST)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StartError(
            f"metrics.listen: {listen.address}, port {listen.port}: {reason}; set another address or port"
        ) from None
    try:
        yield
    finally:
        server.close()


class _Metrics:
    def __init__(self, agent: Supervisor) -> None:
        self._agent = agent
        self._guests = Guests(MAX_CLIENTS)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one answer."""
        try:
            with self._guests.enter(writer) as served:
                if served:
                    await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # too slow, too long, or gone
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CLIENT_SECONDS)
        if self._guests.asked(writer):
            writer.write(await self._answer(head.split(b"\r\n", 1)[0]))
            await asyncio.wait_for(writer.drain(), CLIENT_SECONDS)

    async def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"only GET and HEAD are supported\n")
        if rest.split(b" ")[0].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", b"only /metrics exists\n")
        body = text(await status.status(self._agent)).encode()
        return _response("200 OK", body, leave_out=method == b"HEAD")


def _response(status: str, body: bytes, *, leave_out: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if leave_out else body)
