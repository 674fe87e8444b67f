"""Server of the control socket.

The mode and the group of the socket decide who may connect; the kernel reports the client's user id (SO_PEERCRED, unix(7)).
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
from collections.abc import AsyncIterator, Sequence
from typing import Any

from embargo import checks, explain, names, records
from embargo.daemon.ask import catalogue, status
from embargo.daemon.ask.guests import Guests
from embargo.daemon.ask.orders import (
    REQUESTS,
    Allow,
    Block,
    Catalogue,
    Changed,
    Explained,
    Flush,
    Flushed,
    Forget,
    GetApps,
    GetStatus,
    Pause,
    PauseStatus,
    Refusal,
    Reload,
    Resume,
    Rollback,
    Why,
)
from embargo.daemon.compile.orders import Match, Matches
from embargo.daemon.host import endpoints, watched, whole
from embargo.daemon.process.child import ChildError
from embargo.daemon.supervise import pausing, premises, surroundings, workshop
from embargo.daemon.supervise.premises import StartError
from embargo.daemon.supervise.reload import Outcome
from embargo.daemon.supervise.supervisor import Supervisor
from embargo.dns.acl import Acl
from embargo.errors import BadValue, ConfigError, describe
from embargo.lists import lists, pauses
from embargo.lists.policy import Decision, Network, Switchboard
from embargo.names import Name
from embargo.records import RecordError
from embargo.report import Line, Verdict

log = logging.getLogger(__name__)

MAX_REQUEST = 64 << 10  # octets
MAX_CLIENTS = 32  # at the same time; of more, those are disconnected that send nothing
CLIENT_SECONDS = 2.0  # for a client to send its request, and to read its answer

Edit = Block | Allow | Forget


class _RequestError(Exception):
    """A request that is not carried out; `refusal` is its answer."""

    def __init__(self, error: str, *, usage: bool = False) -> None:
        self.refusal = Refusal(error, usage or None)
        super().__init__(error)


@contextlib.asynccontextmanager
async def serve(agent: Supervisor) -> AsyncIterator[None]:
    """Serve the control socket within the context. StartError if it cannot be created."""
    path = agent.settings.control
    before = os.umask(0o117)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # the lock on the state directory shows that no other agent uses it
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
        log.warning("%s: %s; group %s cannot use the socket until the agent is a member: %s", path, error.strerror, group, hint)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class _Control:
    def __init__(self, agent: Supervisor) -> None:
        self._agent = agent
        self._guests = Guests(MAX_CLIENTS)
        self._editing = asyncio.Lock()

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, one answer."""
        try:
            with self._guests.enter(writer) as served:
                if served:
                    await self._serve(reader, writer)
        except ValueError:
            writer.write(_line(Refusal(f"the request is longer than {MAX_REQUEST} octets")))
        except (TimeoutError, ConnectionError):
            pass  # too slow, or gone
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await asyncio.wait_for(reader.readline(), CLIENT_SECONDS)
        if self._guests.asked(writer):
            answer = await self._answered(request, _uid(writer))
            writer.write(_line(answer))
            await asyncio.wait_for(writer.drain(), CLIENT_SECONDS)

    async def _answered(self, line: bytes, uid: int) -> object:
        """The answer to a request; a Refusal if it is invalid, the disk is full, or a file cannot be used."""
        try:
            return await self._answer(_request(line), uid)
        except _RequestError as error:
            return error.refusal
        except OSError as error:
            return Refusal(describe(error))
        except UnicodeDecodeError:
            return Refusal(f"{watched.local_path(self._agent.settings, 'block')} and allow.list must be UTF-8")

    async def _answer(self, request: object, uid: int) -> object:
        match request:
            case GetStatus():
                return await status.status(self._agent)
            case GetApps():
                return await self._apps()
            case Why():
                return await self._why(request)
            case Reload():
                return _changed(await self._agent.reload("asked for"))
            case Rollback():
                return await self._rollback(uid)
            case Flush():
                return await self._flush(request)
        async with self._editing:
            match request:
                case Block() | Allow() | Forget():
                    return await self._edit(request, uid)
                case Pause():
                    return await self._pause(request, uid)
                case Resume():
                    return await self._resume(request, uid)
        raise AssertionError(f"no code for the request {request}")

    # ── queries ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _apps(self) -> Catalogue:
        generation = self._agent.generation
        assert generation is not None
        hits = await self._agent.hits()
        rows = catalogue.apps(generation.report.apps, self._agent.settings, hits, self._agent.pauses.all)
        return Catalogue(rows, generation.number)

    async def _why(self, request: Why) -> Explained:
        agent, generation = self._agent, self._agent.generation
        assert generation is not None
        client, qtype = request.client or "", request.type or "A"
        try:
            explain.check_client(client)
            acl = Acl(endpoints.local_networks(agent.settings, agent.around.interfaces))
            board, paused = self._judging(client)
            verdict = explain.verdict(generation.image, board, request.subject, qtype, client, acl)
            without_pauses = explain.verdict(generation.image, generation.compiled_board, request.subject, qtype, client, acl)
            subject = explain.subject(request.subject)
        except ValueError as error:
            raise _RequestError(str(error)) from None
        lines = await self._lines(request.subject)
        verdict = explain.with_lines(verdict, lines)
        causes, claim = None, None
        if (without_pauses.verdict, without_pauses.app) != (verdict.verdict, verdict.app):
            applied = [pause for pause in paused if pause.app in (pauses.EVERYTHING, without_pauses.app)]
            causes, claim = tuple(map(status.pause, applied)), explain.decider(without_pauses)
            verdict = explain.paused(verdict, applied)
        if isinstance(subject, Network):
            verdict = await self._with_learnt(verdict, subject)
        elif verdict.verdict == "passed" and not verdict.client_refused:
            verdict = await self._with_answer(verdict, subject, explain.query_type(qtype), client)
        return records.widened(
            Explained, verdict, lines=lines, paused=causes, unless_paused=claim, generation=generation.number
        )

    async def _lines(self, subject: str) -> tuple[Line, ...]:
        """The matching lines of all lists; none if the lists cannot be used or no compiler starts; the verdict needs none."""
        settings, around = self._agent.settings, self._agent.around
        protected = tuple(surroundings.protected(settings, around))
        with contextlib.suppress(ConfigError, OSError):
            answer = await workshop.run(self._agent.spawn, Match(settings.text, settings.file, protected, subject))
            return answer.lines if isinstance(answer, Matches) else ()
        return ()

    async def _with_learnt(self, verdict: Verdict, address: Network) -> Verdict:
        """The verdict, extended by what the guardian knows about the address, if it answers."""
        if self._agent.guarding is not None:
            with contextlib.suppress(ChildError):
                packed = address.first.to_bytes(4 if address.family == 4 else 16)
                return explain.with_learnt(verdict, await self._agent.guarding.about(packed))
        return verdict

    async def _with_answer(self, verdict: Verdict, name: Name, qtype: int, client: str) -> Verdict:
        """The verdict, extended by what the answer for the name leads to, if a resolver finds that out."""
        generation = self._agent.generation
        judged = await self._agent.workers.judge(names.to_text(name), qtype, client or "127.0.0.1")
        if generation is None or judged is None or not judged.answer or judged.generation != generation.number:
            return verdict
        image = generation.image
        if judged.source >= len(image.sources):
            return verdict
        decision = Decision(image.class_of[judged.source], judged.source, judged.line, judged.rule)
        board, _ = self._judging(client)
        return explain.by_answer(verdict, image, board, judged.answer, decision, audit=judged.audit)

    def _judging(self, client: str) -> tuple[Switchboard, list[pauses.Pause]]:
        """(the switchboard for a client, the pauses that apply to it). ValueError if `client` is not an address."""
        generation = self._agent.generation
        assert generation is not None
        if not client:
            return generation.board, [pause for pause in self._agent.pauses.all if not pause.client]
        paused = [pause for pause in self._agent.pauses.all if not pause.client or Acl([pause.client]).allows(client)]
        board = next((exempt.board for exempt in generation.exempt if Acl([exempt.network]).allows(client)), generation.board)
        return board, paused

    async def _rollback(self, uid: int) -> Changed:
        outcome = await self._agent.rollback()
        if outcome.ok:
            self._agent.journal.event({"event": "policy", "verb": "rollback", "uid": uid})
        return _changed(outcome)

    async def _flush(self, request: Flush) -> Flushed:
        text = request.name or "."
        try:
            name = names.ROOT if text == "." else checks.name(text)
        except BadValue as refused:
            raise _RequestError(f'"{text}" {refused.message}, {refused.hint}', usage=True) from None
        try:
            return Flushed(await self._agent.workers.flush(names.to_text(name)))
        except ChildError as error:
            raise _RequestError(str(error)) from None

    # ── pauses ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _paused(self, request: Pause | Resume) -> tuple[str, str]:
        """(app, client) of a request. ValueError if the app does not exist or the client is not an address or network."""
        app, client = request.app or pauses.EVERYTHING, request.client or pauses.EVERYBODY
        generation = self._agent.generation
        assert generation is not None
        ids = [app.id for app in generation.report.apps]
        if app and app not in ids:
            close = difflib.get_close_matches(app, ids, 1)
            raise ValueError(f'no app "{app}"; ' + (f'did you mean "{close[0]}"?' if close else "`embargo apps` lists them"))
        return app, pauses.client(client) if client else client

    async def _pause(self, request: Pause, uid: int) -> Changed:
        try:
            app, client = self._paused(request)
            seconds = pauses.duration(request.duration)
        except ValueError as error:
            raise _RequestError(str(error), usage=True) from None
        begin = pauses.Pause(app, client, round(time.time() + seconds, 3), seconds, uid)
        if len(self._agent.pauses.all) >= pauses.MOST:
            raise _RequestError(f"{pauses.MOST} pauses are in force, which is the limit; end some with `embargo resume`")
        outcome = await self._agent.pause(begin=begin)
        if outcome.ok:
            self._agent.journal.event({"event": "policy", "verb": "pause", **pausing.event_members(begin)})
        return _changed(outcome, pauses=self._all_pauses())

    async def _resume(self, request: Resume, uid: int) -> Changed:
        """End all pauses, those of an app, or those of a client."""
        try:
            app, client = self._paused(request)
        except ValueError as error:
            raise _RequestError(str(error), usage=True) from None
        ended = [pause for pause in self._agent.pauses.all if app in ("", pause.app) and client in ("", pause.client)]
        if not ended:
            raise _RequestError(_not_paused(app, client))
        outcome = await self._agent.pause(end=ended)
        for pause in ended if outcome.ok else ():
            event = {"event": "policy", "verb": "resume", **pausing.event_members(pause), "uid": uid}
            self._agent.journal.event(event)
        return _changed(outcome, pauses=self._all_pauses())

    def _all_pauses(self) -> tuple[PauseStatus, ...]:
        return tuple(map(status.pause, self._agent.pauses.all))

    # ── the agent's own lists ────────────────────────────────────────────────────────────────────────────────────────

    async def _edit(self, request: Edit, uid: int) -> Changed:
        """Change the agent's own lists and reload; if that fails, restore them."""
        verb, entries = request.verb, list(dict.fromkeys(entry.strip() for entry in request.entries))
        if not entries:
            raise _RequestError("entries: name at least one")
        try:
            parsed = [lists.parse_entry(entry) for entry in entries]
        except ValueError as error:
            raise _RequestError(str(error), usage=True) from None
        if any(entry.exception for entry in parsed):
            raise _RequestError("exceptions are possible in an app's list only; use allow instead", usage=True)
        paths = {name: watched.local_path(self._agent.settings, name) for name in ("block", "allow")}
        before = {name: _lines(path) for name, path in paths.items()}
        after = {name: _without(lines, entries) for name, lines in before.items()}
        if verb == "forget" and after == before:
            raise _RequestError(
                f"{', '.join(entries)}: neither embargo allow nor embargo block added it ({paths['allow']}, {paths['block']})"
            )
        if verb != "forget":
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            after[verb] += [f"{entry}  # {verb} by uid {uid}, {stamp}" for entry in entries]
        write_lists(paths, after)
        outcome = await self._agent.reload(verb)
        refused = tuple(str(p) for p in outcome.problems if p.file in paths.values())
        if not outcome.ok or refused:
            write_lists(paths, before)
            await self._agent.reload("undo")
            errors = refused or tuple(map(str, outcome.errors))
            return Changed(False, outcome.changed, outcome.generation, errors, ())
        for entry in entries:
            self._agent.journal.event({"event": "policy", "verb": verb, "entry": entry, "uid": uid})
        return _changed(outcome, warnings=tuple(self._still(verb, entries)))

    def _still(self, verb: str, entries: list[str]) -> list[str]:
        """Warnings for entries without effect, because a list of higher precedence decides otherwise."""
        generation = self._agent.generation
        assert generation is not None
        warnings = []
        for entry in entries:
            text = entry.lstrip("=!").partition("/")[0].strip()
            now = explain.verdict(generation.image, generation.board, text)
            if verb == "block" and now.verdict == "allowed":
                warnings.append(f"{text} still passes: {now.list}:{now.line} allows it, which takes precedence")
            elif verb == "forget" and now.verdict in ("blocked", "allowed"):
                warnings.append(f"{text} is still {now.verdict} by {now.list}:{now.line}")
        return warnings


def _not_paused(app: str, client: str) -> str:
    if not app and not client:
        return "nothing is paused"
    return f"{app or 'everything'} is not paused" + (f" for {client}" if client else "")


def _uid(writer: asyncio.StreamWriter) -> int:
    credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[1])


def _request(line: bytes) -> object:
    """The request in a line of JSON. _RequestError if it is none."""
    try:
        value: Any = records.from_json(line)
    except ValueError:
        value = None
    verb = value.pop("verb", None) if isinstance(value, dict) else None
    if not isinstance(verb, str):
        raise _RequestError("a request must be one line of JSON with a verb")
    if verb not in REQUESTS:
        raise _RequestError(f"unknown verb {verb!r}")
    try:
        return records.decode(REQUESTS[verb], value)
    except RecordError as error:
        raise _RequestError(str(error)) from None


def _line(answer: object) -> bytes:
    return json.dumps(records.encode(answer)).encode() + b"\n"


def _changed(outcome: Outcome, warnings: Sequence[str] = (), pauses: tuple[PauseStatus, ...] | None = None) -> Changed:
    errors, problems = tuple(map(str, outcome.errors)), tuple(map(str, outcome.problems))
    return Changed(outcome.ok, outcome.changed, outcome.generation, errors, problems, tuple(warnings), pauses)


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
    """A value that is equal for entries with the same meaning; for a line that is not an entry, the line itself."""
    try:
        parsed = lists.parse_entry(entry)
    except ValueError:
        return entry
    return parsed.kind, parsed.exception, parsed.name, parsed.network


def write_lists(paths: dict[str, str], contents: dict[str, list[str]]) -> None:
    """Replace the lists atomically. OSError if there is no room for all of them: then none is replaced."""
    octets = {path: "".join(f"{line}\n" for line in contents[name]).encode() for name, path in paths.items()}
    whole.replace(octets, 0o644)
