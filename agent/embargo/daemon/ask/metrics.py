"""What `status` counts, for Prometheus: text of its exposition format 0.0.4 over HTTP, on `[metrics] listen`.

Labels name apps, functions and upstreams. Clients, names and rules stand in none: they are without number.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from embargo.daemon.ask import control
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.supervisor import Supervisor

MAX_REQUEST = 8 << 10  # octets
PATIENCE = 2.0  # seconds for a request to be whole, and for an answer to be taken
MAX_CLIENTS = 16
_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Told = dict[str, Any]
Sample = tuple[dict[str, str], float]


def text(status: Told) -> str:
    """The metrics of an answer of `control.status`."""
    out = []
    for name, help_, samples in _metrics(status):
        kind = "counter" if name.endswith("_total") else "gauge"
        out += [f"# HELP embargo_{name} {help_}", f"# TYPE embargo_{name} {kind}"]
        for labels, value in samples:
            written = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
            out.append(f"embargo_{name}{{{written}}} {_number(value)}" if written else f"embargo_{name} {_number(value)}")
    return "\n".join(out) + "\n"


def _number(value: float) -> str:
    """With every digit: a counter that is rounded stands still, and then jumps."""
    return str(int(value)) if value == int(value) else repr(value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _metrics(status: Told) -> Iterator[tuple[str, str, Iterable[Sample]]]:
    """(name without the prefix, help, samples)."""
    counters, cache, wall, reload = status["counters"], status["cache"], status["firewall"], status["reload"]

    def one(value: float) -> list[Sample]:
        return [({}, value)]

    yield "build_info", "The version that runs.", [({"version": status["version"], "accelerator": status["accelerator"]}, 1)]
    yield "uptime_seconds", "Time since the start.", one(status["uptime"])
    yield "generation", "The number of the policy in force.", one(status["generation"])
    yield "names", "Listed names in force.", one(status["names"])
    yield "networks", "Listed networks in force.", one(status["networks"])
    yield "pauses", "Timed exceptions in force.", one(len(status["pauses"]))
    yield "list_problems", "Problems of the lists in force.", one(len(status["problems"]))
    yield "reload_success", "Did the last reload come to be?", one(reload["ok"])
    yield "reload_age_seconds", "Time since the last reload.", one(reload["ago"])
    by_transport: list[Sample] = [({"transport": each}, counters.get(f"queries_{each}", 0)) for each in ("udp", "tcp")]
    yield "queries_total", "Queries taken.", by_transport
    dropped: list[Sample] = [
        ({"reason": name.removeprefix("dropped_")}, count) for name, count in counters.items() if name.startswith("dropped_")
    ]
    yield "queries_dropped_total", "Queries without an answer.", dropped
    yield "upstream_queries_total", "Questions sent upstream.", one(counters.get("upstream_queries", 0))
    yield "cache_hits_total", "Queries answered from the cache.", one(cache.get("hits", 0))
    yield "cache_misses_total", "Queries that the cache had no answer for.", one(cache.get("misses", 0))
    yield "cache_stale_total", "Answers given out after their time.", one(cache.get("stale", 0))
    yield "cache_entries", "Answers in the cache.", one(cache.get("entries", 0))
    yield "cache_bytes", "Their size.", one(cache.get("octets", 0))
    hits: list[Sample] = [
        ({"app": app["id"], "function": name}, function["hits"])
        for app in status["apps"]
        for name, function in app["functions"].items()
    ]
    yield "attempts_total", "Attempts that a function of an app claims, blocked or audited, names and addresses.", hits
    upstreams = status["upstreams"]
    yield "upstream_up", "Is it asked?", [({"server": u["server"]}, u["healthy"]) for u in upstreams]
    yield "upstream_asked_total", "Questions to it.", [({"server": u["server"]}, u["asked"]) for u in upstreams]
    yield "upstream_failed_total", "Questions it failed.", [({"server": u["server"]}, u["failed"]) for u in upstreams]
    yield "upstream_rtt_seconds", "How long it takes.", [({"server": u["server"]}, u["milliseconds"] / 1000) for u in upstreams]
    yield "resolver_restarts_total", "Resolver processes started again.", one(status["worker_restarts"])
    yield "resolvers", "Resolver processes.", one(len(status["workers"]) or status["inside"])
    yield "events_lost_total", "Events that could not be written.", one(status["events"]["lost"])
    yield "firewall_enabled", "Is there to be a table?", one(wall["enabled"])
    if wall["enabled"]:
        yield "firewall_present", "Is it in the kernel?", one(wall["present"])
        yield "firewall_restored_total", "Times that it was laid down again after others changed it.", one(wall["restored"])
        yield "firewall_guardian_restarts_total", "Guardian processes started again.", one(wall["guardian_restarts"])
        yield "firewall_connections_cut_total", "Open connections deleted.", one(wall["cut"])
        yield "firewall_learnt_addresses", "Addresses behind blocked names.", one(wall["learning"].get("addresses", 0))


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def serve(agent: Supervisor) -> AsyncIterator[None]:
    """Listen where the configuration says, if it does, for as long as the context lasts."""
    listen = agent.settings.metrics.listen
    if listen is None:
        yield
        return
    try:
        server = await asyncio.start_server(_Metrics(agent).client, listen.address, listen.port, limit=MAX_REQUEST)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StartError(f"metrics.listen: {listen.address}, port {listen.port}: {reason}; name another") from None
    try:
        yield
    finally:
        server.close()


class _Metrics:
    def __init__(self, agent: Supervisor) -> None:
        self._agent = agent
        self._clients = 0

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
                writer.write(await self._answer(head.split(b"\r\n", 1)[0]))
                await asyncio.wait_for(writer.drain(), PATIENCE)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # too slow, too long, or gone
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET is what there is\n")
        if rest.split(b" ")[0].partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", b"/metrics is what there is\n")
        body = text(await control.status(self._agent)).encode()
        return _response("200 OK", body, leave_out=method == b"HEAD")


def _response(status: str, body: bytes, *, leave_out: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if leave_out else body)
