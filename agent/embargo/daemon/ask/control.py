"""The control socket: the supervisor answers what the command line asks (`client`).

A request is one line of JSON, {"verb": …}; so is the answer, with "ok" and what was asked for. The kernel says who asks
(SO_PEERCRED). The socket's mode and group decide who may.
"""

import asyncio
import contextlib
import difflib
import json
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import embargo
from embargo import accelerator, events, explain
from embargo.daemon.compile import sources
from embargo.daemon.host import endpoints, whole
from embargo.daemon.process.child import ChildError
from embargo.daemon.supervise import premises, surroundings, workshop
from embargo.daemon.supervise.pausing import told_of
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.supervisor import Outcome, Supervisor
from embargo.dns.acl import Acl
from embargo.errors import ConfigError, Problem, said
from embargo.lists import lists, pauses
from embargo.lists.pauses import Pause
from embargo.lists.policy import Action, Network, Switchboard

log = logging.getLogger(__name__)

MAX_REQUEST = 64 << 10  # octets
MAX_CLIENTS = 32
PATIENCE = 2.0  # seconds for a request to be whole, and for an answer to be taken

Told = dict[str, Any]


@contextlib.asynccontextmanager
async def serve(agent: Supervisor) -> AsyncIterator[None]:
    """Listen at the configured path for as long as the context lasts."""
    path = agent.settings.control
    before = os.umask(0o117)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # the lock on the state directory says that nobody else uses it
        server = await asyncio.start_unix_server(_Control(agent).client, path, limit=MAX_REQUEST)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}; set [state] runtime elsewhere") from None
    finally:
        os.umask(before)
    group = agent.settings.state.group
    try:
        os.chown(path, -1, premises.group_id(group))
    except OSError as error:
        hint = f"`systemctl edit embargo`, [Service] SupplementaryGroups={group}"
        log.warning("%s: %s; the group %s cannot use it until the agent is in it: %s", path, error.strerror, group, hint)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class _Control:
    def __init__(self, agent: Supervisor) -> None:
        self._agent = agent
        self._clients = 0
        self._editing = asyncio.Lock()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer."""
        self._clients += 1
        try:
            if self._clients <= MAX_CLIENTS:
                request = await asyncio.wait_for(reader.readline(), PATIENCE)
                answer = await self._answered(request, _uid(writer))
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), PATIENCE)
        except ValueError:
            writer.write(json.dumps({"ok": False, "error": f"a request has at most {MAX_REQUEST} octets"}).encode() + b"\n")
        except (TimeoutError, ConnectionError):
            pass  # too slow, or gone
        finally:
            self._clients -= 1
            writer.close()

    async def _answered(self, line: bytes, uid: int) -> Told:
        """An answer also where the disk is full or a file is in the way."""
        try:
            return await self._answer(line, uid)
        except OSError as error:
            return {"ok": False, "error": said(error)}
        except UnicodeDecodeError:
            return {"ok": False, "error": f"{sources.local_path(self._agent.settings, 'block')} and allow.list must be UTF-8"}

    async def _answer(self, line: bytes, uid: int) -> Told:
        try:
            request = json.loads(line)
            verb = request["verb"]
        except (ValueError, KeyError, TypeError):
            return {"ok": False, "error": "a request is one line of JSON with a verb"}
        match verb:
            case "status":
                return {"ok": True, **await status(self._agent)}
            case "reload":
                return _outcome(await self._agent.reload("asked for"))
            case "rollback":
                return await self._rollback(uid)
            case "why":
                return await self._why(request)
            case "apps":
                return {"ok": True, **await self._apps()}
            case "block" | "allow" | "forget":
                async with self._editing:
                    return await self._edit(verb, request.get("entries"), uid)
            case "pause" | "resume":
                async with self._editing:
                    return await self._pause(request, uid) if verb == "pause" else await self._resume(request, uid)
        return {"ok": False, "error": f"there is no verb {verb!r}"}

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _apps(self) -> Told:
        generation = self._agent.generation
        assert generation is not None
        hits = await self._agent.hits()
        rows = [_app(app, hits, self._agent.pauses.all) for app in generation.report["apps"]]
        return {"apps": rows, "generation": generation.number}

    async def _why(self, request: Told) -> Told:
        agent, generation = self._agent, self._agent.generation
        assert generation is not None
        text = str(request.get("subject", ""))
        client = str(request.get("client") or "")
        try:
            networks = endpoints.local_networks(agent.settings, agent.around.interfaces)
            qtype, acl = str(request.get("type") or "A"), Acl(networks)
            board, paused = self._judging(client)
            told = explain.verdict(generation.image, board, text, qtype, client, acl)
            usual = explain.verdict(generation.image, generation.compiled_board, text, qtype, client, acl)
            if (usual["verdict"], usual.get("app")) != (told["verdict"], told.get("app")):
                told["paused"] = [_pause(each) for each in paused if each.app in (pauses.EVERYTHING, usual.get("app"))]
            asked = explain.subject(text)
        except ValueError as error:
            return {"ok": False, "error": str(error)}
        try:
            answer = await workshop.run(agent.spawn, {**workshop.order(agent.settings, agent.around), "matching": text})
        except (ConfigError, OSError):
            answer = {}  # the lists cannot be used just now, or there is no compiler; the verdict stands without them
        told["lines"] = answer.get("matching", [])
        if isinstance(asked, Network) and agent.guardian is not None:
            with contextlib.suppress(ChildError):
                packed = asked.first.to_bytes(4 if asked.family == 4 else 16)
                explain.add_learnt(told, await agent.guardian.ask("about", address=packed.hex()))
        return {"ok": True, **told, "generation": generation.number}

    def _judging(self, client: str) -> tuple[Switchboard, list[Pause]]:
        """By which switchboard a client is judged, and the pauses that it comes from. ValueError: it is none."""
        generation = self._agent.generation
        assert generation is not None
        if not client:
            return generation.board, [each for each in self._agent.pauses.all if not each.client]
        theirs = [each for each in self._agent.pauses.all if not each.client or Acl([each.client]).allows(client)]
        board = next((each.board for each in generation.exempt if Acl([each.network]).allows(client)), generation.board)
        return board, theirs

    async def _rollback(self, uid: int) -> Told:
        outcome = await self._agent.rollback()
        if outcome.ok:
            self._agent.journal.event({"event": "policy", "verb": "rollback", "uid": uid})
        return _outcome(outcome)

    # ── pauses ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _paused(self, request: Told) -> tuple[str, str]:
        """(app, client) of a request. ValueError when there is no such app, or it is no client."""
        app, client = str(request.get("app") or pauses.EVERYTHING), str(request.get("client") or pauses.EVERYBODY)
        generation = self._agent.generation
        assert generation is not None
        known = [told["id"] for told in generation.report["apps"]]
        if app and app not in known:
            close = difflib.get_close_matches(app, known, 1)
            raise ValueError(f'no app "{app}"; ' + (f'did you mean "{close[0]}"?' if close else "`embargo apps` lists them"))
        return app, pauses.client(client) if client else client

    async def _pause(self, request: Told, uid: int) -> Told:
        try:
            app, client = self._paused(request)
            seconds = pauses.duration(str(request.get("duration")))
        except ValueError as error:
            return {"ok": False, "usage": True, "error": str(error)}
        begin = Pause(app, client, round(time.time() + seconds, 3), seconds, uid)
        if len(self._agent.pauses.all) >= pauses.MOST:
            return {"ok": False, "error": f"{pauses.MOST} pauses are in force already; embargo resume ends some"}
        outcome = await self._agent.pause(begin=begin)
        if outcome.ok:
            self._agent.journal.event({"event": "policy", "verb": "pause", **told_of(begin)})
        return {**_outcome(outcome), "pauses": list(map(_pause, self._agent.pauses.all))}

    async def _resume(self, request: Told, uid: int) -> Told:
        """End all pauses, those of an app, or those of a client."""
        try:
            app, client = self._paused(request)
        except ValueError as error:
            return {"ok": False, "usage": True, "error": str(error)}
        over = [each for each in self._agent.pauses.all if app in ("", each.app) and client in ("", each.client)]
        if not over:
            return {
                "ok": False,
                "error": "nothing is paused" if not app and not client else "no such pause; see embargo status",
            }
        outcome = await self._agent.pause(end=over)
        for each in over if outcome.ok else ():
            self._agent.journal.event({"event": "policy", "verb": "resume", **told_of(each), "uid": uid})
        return {**_outcome(outcome), "pauses": list(map(_pause, self._agent.pauses.all))}

    # ── the agent's own lists ────────────────────────────────────────────────────────────────────────────────────────

    async def _edit(self, verb: str, entries: Any, uid: int) -> Told:
        """Change the local lists and put them in force; back to what they were when that does not come to be."""
        if not isinstance(entries, list) or not entries or not all(isinstance(each, str) for each in entries):
            return {"ok": False, "error": "entries: name at least one"}
        entries = list(dict.fromkeys(each.strip() for each in entries))
        try:
            parsed = [lists.parse_entry(each) for each in entries]
        except ValueError as error:
            return {"ok": False, "usage": True, "error": str(error)}
        if any(each.exception for each in parsed):
            return {"ok": False, "usage": True, "error": "an exception belongs to an app's list; use allow instead"}
        paths = {name: sources.local_path(self._agent.settings, name) for name in ("block", "allow")}
        before = {name: _lines(path) for name, path in paths.items()}
        after = {name: _without(lines, entries) for name, lines in before.items()}
        if verb == "forget" and after == before:
            return {"ok": False, "error": f"{', '.join(entries)}: not in the agent's own lists ({paths['block']})"}
        if verb != "forget":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            after[verb] += [f"{entry}  # {verb} by uid {uid}, {stamp}" for entry in entries]
        write_lists(paths, after)
        outcome = await self._agent.reload(verb)
        refused = [str(p) for p in outcome.problems if p.file in paths.values()]
        if not outcome.ok or refused:
            write_lists(paths, before)
            await self._agent.reload("undo")
            return {**_outcome(outcome), "ok": False, "problems": [], "errors": refused or list(map(str, outcome.errors))}
        for entry in entries:
            self._agent.journal.event({"event": "policy", "verb": verb, "entry": entry, "uid": uid})
        return {**_outcome(outcome), "warnings": self._still(verb, entries)}

    def _still(self, verb: str, entries: list[str]) -> list[str]:
        """Entries that changed nothing, because something that comes first says otherwise."""
        generation = self._agent.generation
        assert generation is not None
        found = []
        for entry in entries:
            text = entry.lstrip("=!").partition("/")[0].strip()
            told = explain.verdict(generation.image, generation.board, text)
            if verb == "block" and told["verdict"] == "allowed":
                found.append(f"{text} still passes: {told['list']}:{told['line']} allows it, and that comes first")
            elif verb == "forget" and told["verdict"] in ("blocked", "allowed"):
                found.append(f"{text} is still {told['verdict']}, by {told['list']}:{told['line']}")
        return found


async def status(agent: Supervisor) -> Told:
    """Everything that `embargo status` tells."""
    generation, settings = agent.generation, agent.settings
    assert generation is not None
    stats = await agent.workers.stats()
    wall = await agent.firewall_stats()
    now = time.time()
    report = generation.report
    hits = agent.counted("hits")
    unpoliced = await asyncio.to_thread(surroundings.unpoliced, settings, agent.around)
    counters: Counter[str] = Counter()
    cache: Counter[str] = Counter()
    for each in stats:
        counters.update(each["counters"])
        cache.update(each["cache"])
    last = agent.last
    lists = [{**row, "age": round(now - row["modified"])} for row in report["lists"]]
    return {
        "running": True, "pid": os.getpid(), "version": embargo.__version__, "uptime": round(now - agent.started, 1),
        "config": settings.file, "generation": generation.number, "since": round(now - agent.since, 1),
        "names": len(generation.image), "networks": generation.image.networks,
        "pauses": list(map(_pause, agent.pauses.all)),
        "mode": "audit" if settings.policy.mode is Action.AUDIT else "block",
        "accelerator": accelerator.NAME,
        "workers": agent.workers.pids, "inside": agent.workers.inside, "worker_restarts": agent.workers.restarts,
        "listen": list(map(str, agent.sockets.endpoints)),
        "lists": lists,
        "problems": [_problem(p) for p in report["problems"]],
        "reload": {
            "ok": last.ok if last else True, "errors": list(map(str, last.errors)) if last else [],
            "ago": round(now - agent.last_at, 1),
        },
        "apps": [_app(app, hits, agent.pauses.all) for app in report["apps"]],
        "firewall": _firewall(agent, wall),
        "upstreams": _upstreams(agent, stats),
        "counters": {**counters, **agent.counted("counters")}, "cache": {**cache, **agent.counted("cache")},
        "events": {"file": agent.journal.path, "lost": agent.journal.lost, "trouble": agent.journal.trouble},
        "uncovered": [
            *(f"{each}, paused until {events.timestamp(each.until)}" for each in agent.pauses.all),
            *explain.uncovered(
                settings, report, bool(agent.sockets.endpoints), lists, wall, unpoliced
            ),
        ],
    }  # fmt: skip


def _uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[1])


def _outcome(outcome: Outcome) -> Told:
    return {
        "ok": outcome.ok, "changed": outcome.changed, "generation": outcome.generation,
        "errors": list(map(str, outcome.errors)), "problems": list(map(str, outcome.problems)),
    }  # fmt: skip


def _problem(row: list[Any]) -> str:
    return str(Problem(*row))


def _pause(pause: Pause) -> Told:
    return {"app": pause.app, "client": pause.client, "until": events.timestamp(pause.until), "uid": pause.uid}


def _app(app: Told, hits: dict[str, int], paused: list[Pause]) -> Told:
    functions = {name: {**function, "hits": hits.get(f"{app['id']}/{name}", 0)} for name, function in app["functions"].items()}
    until = [events.timestamp(each.until) for each in paused if not each.client and each.app in ("", app["id"])]
    told = {**app, "functions": functions, "hits": sum(f["hits"] for f in functions.values())}
    return told | ({"paused": max(until)} if until else {})


def _firewall(agent: Supervisor, wall: Told) -> Told:
    settings, counted = agent.settings.firewall, agent.counted("firewall")
    if agent.guardian is None:
        return {"enabled": False}
    return {
        "enabled": True, "table": "inet embargo", "present": bool(wall.get("present")), "lan": list(settings.lan),
        "intercept_dns": bool(endpoints.intercept_port(agent.settings)), "fail": settings.fail,
        "on_stop": settings.on_stop, "guardian": agent.guardian.pid, "guardian_restarts": agent.guardian_restarts,
        "counters": wall.get("counters", {}), "log_lost": wall.get("lost", 0), "noted": wall.get("noted", 0),
        "owned": bool(wall.get("owned")), "restored": counted["restored"], "cut": counted["cut"],
        "learning": wall.get("learning", {}),
    }  # fmt: skip


def _upstreams(agent: Supervisor, stats: list[Told]) -> list[Told]:
    """One row per server, the workers' counts together."""
    asked, failed = agent.counted("asked"), agent.counted("failed")
    rows: dict[str, Told] = {}
    for each in stats:
        for row in each["upstreams"]:
            known = rows.setdefault(row["server"], {**row, "asked": 0, "healthy": False, "milliseconds": 0.0})
            together = known["asked"] + row["asked"]
            if together:
                weighted = known["milliseconds"] * known["asked"] + row["milliseconds"] * row["asked"]
                known["milliseconds"] = round(weighted / together, 2)
            known["asked"] = together
            known["healthy"] = known["healthy"] or row["healthy"]
            known["last_error"] = known["last_error"] or row["last_error"]
    return [{**row, "asked": asked[server], "failed": failed[server]} for server, row in rows.items()]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _without(lines: list[str], entries: list[str]) -> list[str]:
    gone = {_meaning(entry) for entry in entries}
    return [line for line in lines if _meaning(line.partition("#")[0].strip()) not in gone]


def _meaning(entry: str) -> object:
    """What an entry is about, however it is spelled; a line that means nothing is only itself."""
    try:
        parsed = lists.parse_entry(entry)
    except ValueError:
        return entry
    return parsed.kind, parsed.exception, parsed.name, parsed.network


def write_lists(paths: dict[str, str], contents: dict[str, list[str]]) -> None:
    """Each list whole or not at all, also through a power cut; none of them when there is no room for one."""
    octets = {path: "".join(f"{line}\n" for line in contents[name]).encode() for name, path in paths.items()}
    whole.replace(octets, 0o644)
