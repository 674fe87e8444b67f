"""The command line: a client of the control socket, and the start of the agent.

Exit status: 0 done, 1 the answer is no or what was asked for failed, 2 usage or configuration error.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import click

import embargo
from embargo import config, explain
from embargo.cli import show
from embargo.config import Config
from embargo.daemon.ask import control, metrics
from embargo.daemon.ask.control import ControlError, NotRunning
from embargo.daemon.compile import compiler, sources
from embargo.daemon.guard.netlink import Nftables
from embargo.daemon.host import endpoints, machine
from embargo.daemon.host.authorities import certificates
from embargo.daemon.host.endpoints import ListenError
from embargo.daemon.log import journald
from embargo.daemon.process import privileges
from embargo.daemon.process.spawn import HERE, Spawn, Units
from embargo.daemon.resolve import tls
from embargo.daemon.supervise import supervisor, surroundings
from embargo.daemon.supervise.supervisor import Supervisor
from embargo.dns.acl import Acl
from embargo.errors import ConfigError, EmbargoError, FirewallError, Problem
from embargo.export import effective, render
from embargo.export.formats import FORMATS
from embargo.firewall import ruleset
from embargo.firewall.ruleset import Own
from embargo.lists.image import Image

DEFAULT = "/etc/embargo/embargo.toml"
NO, USAGE = 1, 2
SOCKET = ("state", "runtime")  # the key that tells where a running agent is asked
AFTERWARDS = ("ruleset", "addresses", "upstreams")  # what `check` looks at when the configuration can be used
PROBES = 8  # servers that `check` asks for their certificates at once
TRY = ("mygw.alipay.com", "pay.weixin.qq.com", "wup.qq.com")  # names for a first `dig`, the first blocked one is shown

Told = dict[str, Any]


def main() -> None:
    cli.main(prog_name="embargo")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Makes named apps stop on a network: by name, by address, and on the ways around both."""


def verb(*, reads: bool = False) -> Callable[[Callable[..., None]], click.Command]:
    """A subcommand: -c for every one, --json for those that read, our errors as exit statuses."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def run(file: str, **options: Any) -> None:
            try:
                function(file, **options)
            except ConfigError as error:
                _fail(str(error), USAGE)
            except EmbargoError as error:
                _fail(str(error), NO)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(NO)

        run.__doc__ = function.__doc__
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined] # click's own way
        command = cli.command(function.__name__)(run)
        if reads:
            command.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."))
        option = click.Option(["-c", "--config", "file"], default=DEFAULT, show_default=True, help="The configuration.")
        command.params.append(option)
        return command

    return decorate


def _fail(text: str, status: int) -> NoReturn:
    show_error = "\n".join(show.clean(line) for line in text.splitlines())
    print(show_error, file=sys.stderr)
    sys.exit(status)


def _settings(file: str) -> Config:
    return config.parse(_text(file), os.path.abspath(file))


def _text(file: str) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        hint = "name one with -c FILE" if file == DEFAULT else "check the path"
        raise ConfigError([Problem(file, 0, f"it cannot be read: {error.strerror}", hint)]) from None


def _rest(file: str, key: tuple[str, str]) -> tuple[Config, tuple[Problem, ...]]:
    """What can be used of the configuration, and what is wrong with it, for verbs that need a single key.

    A mistake in the file is no reason not to ask an agent that runs with what it read before. ConfigError when the key cannot
    be told: with -c FILE its default might be another agent's.
    """
    path, text = os.path.abspath(file), _text(file)
    try:
        reading = config.read(text, path)
    except ConfigError as error:
        if file != DEFAULT:
            raise
        return config.default(path), error.problems
    if file != DEFAULT and reading.problems and key not in reading.written:
        raise ConfigError(reading.problems)
    return reading.config, reading.problems


def _warn(problems: Iterable[Problem]) -> None:
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


def _events(file: str) -> str:
    settings, wrong = _rest(file, ("log", "events"))
    _warn(wrong)
    return settings.log.events


def _ask(file: str, name: str, **members: Any) -> Told:
    settings, wrong = _rest(file, SOCKET)
    _warn(wrong)
    return _answer(settings, name, **members)


def _answer(settings: Config, name: str, **members: Any) -> Told:
    answer = control.ask(settings.control, name, **members)
    if "errors" not in answer and not answer["ok"]:
        _fail(answer["error"], USAGE if answer.get("usage") else NO)
    return answer


# ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb()
@click.option("--units", default="", metavar="DIRECTORY", help="Where systemd listens to start our units.")
def run(file: str, units: str) -> None:
    """The agent, in the foreground. SIGHUP reloads, SIGTERM and SIGINT stop it."""
    settings = _settings(file)
    logging.addLevelName(logging.CRITICAL, "critical")
    if journald.under_it():
        with contextlib.suppress(OSError):  # without its socket, what is printed reaches it all the same
            logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[journald.JournalHandler()])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s", stream=sys.stderr)
    asyncio.run(_run(settings, Units(units) if units else HERE))


async def _run(settings: Config, spawn: Spawn) -> None:
    around = await asyncio.to_thread(surroundings.look, settings)
    await Supervisor(settings, around, spawn).run(_serve, _ready)


@contextlib.asynccontextmanager
async def _serve(agent: Supervisor) -> AsyncIterator[None]:
    async with control.serve(agent), metrics.serve(agent):
        yield


def _ready(agent: Supervisor) -> None:
    generation, listen = agent.generation, agent.sockets.endpoints
    assert generation is not None
    where = ", ".join(map(str, listen)) or "no address"
    size = f"{len(generation.image)} names, {generation.image.networks} networks"
    print(f"ready: generation {generation.number}, {size}, on {where}")
    blocked = (name for name in TRY if explain.verdict(generation.image, generation.board, name)["verdict"] == "blocked")
    name = next(blocked, None)
    if name and listen:
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen[0].address, listen[0].address)
        port = f" -p {listen[0].port}" if listen[0].port != 53 else ""
        print(f"try:   dig @{address}{port} {name}")
    sys.stdout.flush()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("--lists", "every_list", is_flag=True, help="Show every list, not only those with problems.")
def status(file: str, every_list: bool, as_json: bool) -> None:
    """Is it running, what is in force, what is wrong, what is not covered? Exit status 1 when it is not running."""
    try:
        told = _ask(file, "status")
    except NotRunning as error:
        if as_json:
            show.as_json({"running": False, "reason": str(error)})
            sys.exit(NO)
        raise
    show.as_json(told) if as_json else show.status(told, every_list=every_list)


@verb(reads=True)
@click.argument("subject")
@click.option("--type", "qtype", default="A", help="The query's type.")
@click.option("--client", default="", help="The client that asks.")
def why(file: str, subject: str, qtype: str, client: str, as_json: bool) -> None:
    """Is this NAME or ADDRESS blocked, and by which line? Exit status 0: something blocks it, 1: nothing does."""
    settings, wrong = _rest(file, SOCKET)
    try:
        told = control.ask(settings.control, "why", subject=subject, type=qtype, client=client)
        _warn(wrong)
    except NotRunning:
        if wrong:
            raise ConfigError(wrong) from None
        told = _why_offline(settings, subject, qtype, client)
    if not told["ok"]:
        _fail(told["error"], USAGE)
    show.as_json(told) if as_json else show.why(told)
    sys.exit(0 if told["verdict"] == "blocked" else NO)


def _why_offline(settings: Config, subject: str, qtype: str, client: str) -> Told:
    loaded, built, board = _compiled(settings)
    networks = endpoints.local_networks(settings, machine.interfaces())
    try:
        told = explain.verdict(built, board, subject, qtype, client, Acl(networks))
        return {"ok": True, **told, "lines": explain.matching(loaded.lists, explain.subject(subject)), "generation": 0}
    except ValueError as error:
        return {"ok": False, "error": str(error)}


def _compiled(settings: Config) -> tuple[sources.Loaded, Image, Any]:
    protected = surroundings.protected(settings, surroundings.look(settings))
    loaded = sources.load(settings, compiler.guard(protected))
    data, board = compiler.build(settings, loaded)
    return loaded, Image(data), board


@verb(reads=True)
@click.argument("app", required=False)
def apps(file: str, app: str | None, as_json: bool) -> None:
    """The catalogue: apps, their functions and entries, what is on, how often it was hit."""
    settings, wrong = _rest(file, SOCKET)
    try:
        rows = control.ask(settings.control, "apps")["apps"]
        _warn(wrong)
    except NotRunning:
        if wrong:
            raise ConfigError(wrong) from None
        loaded, built, board = _compiled(settings)
        rows = compiler.report(settings, loaded, built, board)["apps"]
    if app is not None:
        rows = [row for row in rows if row["id"] == app]
        if not rows:
            _fail(f'no app "{app}"; `embargo apps` lists them', NO)
    if as_json:
        show.as_json(rows)
    elif app is not None:
        show.app(rows[0])
    else:
        show.apps(rows)


@verb(reads=True)
def check(file: str, as_json: bool) -> None:
    """Configuration, lists and ruleset, all problems at once. Exit status 0: none, 1: some, 2: the configuration's own.

    Of a configuration that cannot be used the lists are still read, if it is clear where they are; the rest comes after it.
    """
    wrong, problems, left = _checked(file)
    if as_json:
        every = [problem._asdict() for problem in (*wrong, *problems)]
        show.as_json({"ok": not every, "problems": every, "unchecked": left})
    else:
        for problem in wrong:
            print(problem, file=sys.stderr)
        show.lines(map(str, problems))
        count = len(wrong) + len(problems)
        print(f"{count} problem{'s' if count != 1 else ''}" if count else "no problems")
        if left:
            print(f"not checked yet: {', '.join(left)}; the configuration first")
    sys.exit(USAGE if wrong else NO if problems else 0)


def _checked(file: str) -> tuple[tuple[Problem, ...], list[Problem], list[str]]:
    """Problems of the configuration, those of everything else, and what could not be looked at because of the former."""
    path = os.path.abspath(file)
    try:
        reading = config.read(_text(file), path)
    except ConfigError as error:
        return error.problems, [], ["lists", *AFTERWARDS]
    if not reading.problems:
        settings = reading.config
        return (), [*_check_lists(settings), *sources.closed(settings), *_check_machine(settings)], []
    if reading.wrong <= config.OPTIONS.keys() - {"lists", "state"}:
        return reading.problems, _load_lists(reading.config)[1], [*AFTERWARDS]
    return reading.problems, [], ["lists", *AFTERWARDS]


def _check_lists(settings: Config) -> list[Problem]:
    loaded, problems = _load_lists(settings)
    return [*problems, *_check_ruleset(settings, loaded)] if loaded else problems


def _load_lists(settings: Config) -> tuple[sources.Loaded | None, list[Problem]]:
    try:
        loaded = sources.load(settings, compiler.guard(surroundings.protected(settings, surroundings.look(settings))))
    except ConfigError as error:
        return None, list(error.problems)
    return loaded, [*loaded.problems, *compiler.harmed(loaded)]


def _check_ruleset(settings: Config, loaded: sources.Loaded) -> Iterator[Problem]:
    firewall = settings.firewall
    if firewall.enabled and privileges.CAP_NET_ADMIN in privileges.effective():
        data, board = compiler.build(settings, loaded)
        around = surroundings.look(settings)
        wanted = ruleset.spec(
            Image(data), board, 1, lan=firewall.lan, except_=firewall.except_, fail=firewall.fail,
            intercept_port=endpoints.intercept_port(settings), log_group=firewall.log_group,
            own=(Own(*each) for each in surroundings.own_questions(settings, around, os.geteuid())),
            system=(each.address for each in around.system),
        )  # fmt: skip
        try:
            Nftables().check(ruleset.build(wanted, "embargo_check"))
        except FirewallError as error:
            yield Problem(settings.file, 0, f"the kernel refuses the ruleset: {error}", "")
    elif firewall.enabled and os.geteuid() == 0:
        yield Problem(settings.file, 0, "firewall.enabled: no CAP_NET_ADMIN here", "grant it, or set it to false")


def _check_machine(settings: Config) -> Iterator[Problem]:
    around = surroundings.look(settings)
    yield from surroundings.asking_itself(settings, around)
    yield from _check_tls(settings)
    if not around.upstreams:
        yield Problem(
            settings.file,
            settings.line("dns", "upstream"),
            "dns.upstream: no resolver is left to ask",
            'name one, as in ["192.0.2.53"]',
        )
    names = {interface.name for interface in around.interfaces}
    for name in settings.firewall.lan:
        if name not in names:
            yield Problem(
                settings.file,
                settings.line("firewall", "lan"),
                f'firewall.lan: no interface "{name}" with an address',
                "see `ip address`",
            )
    try:
        control.ask(settings.control, "apps")
    except NotRunning:
        sockets = endpoints.Sockets()
        for each in around.endpoints:
            if endpoints.is_absent(each, around.interfaces):
                yield Problem(
                    settings.file, settings.line("dns", "listen"), f"dns.listen: no interface has {each}", "see `ip address`"
                )
                continue
            try:
                sockets.follow((*sockets.endpoints, each), 1, around.interfaces)
            except ListenError as error:
                yield Problem(settings.file, 0, str(error), "")
        sockets.close()
    except ControlError as error:
        yield Problem(settings.control, 0, str(error), "")


def _check_tls(settings: Config) -> Iterator[Problem]:
    """What is wrong with the upstreams over TLS that can be reached; who cannot be reached may be so tomorrow."""
    trusted = ""
    if settings.dns.tls_ca:
        try:
            trusted = certificates(Path(settings.dns.tls_ca).read_text(errors="replace"))
        except (OSError, ValueError):
            return  # said of the file already
    named = [("upstream", server) for server in settings.dns.upstream if server.tls]
    named += [("forward", server) for _, servers in settings.dns.forward for server in servers if server.tls]
    with ThreadPoolExecutor(PROBES) as pool:
        found = pool.map(lambda each: tls.probe(each[1], trusted), named)
        for (key, server), wrong in zip(named, found, strict=True):
            if wrong:
                hint = "mend it there, or name another server, another #name or dns.tls_ca"
                yield Problem(settings.file, settings.line("dns", key), f"dns.{key}: {server} {wrong}", hint)


@verb(reads=True)
@click.argument("format_", metavar=f"{{{'|'.join(FORMATS)}}}", type=click.Choice(list(FORMATS)))
@click.option(
    "--serial", type=click.IntRange(0, 0xFFFF_FFFF), help="rpz: the zone's serial, for secondaries; otherwise from its content."
)
def export(file: str, format_: str, serial: int | None, as_json: bool) -> None:
    """The policy for other software, from the configuration's files: no agent has to run.

    rpz: a response policy zone, for BIND and others. hosts: the listed names alone. domains: names that stand for those below
    them too. dnsmasq, unbound: lines for their configuration. adblock: AdGuard Home, Pi-hole. nft: the addresses, for nft -f.
    What a format cannot say is told on standard error and in the header. With --json the entries, each with what decided.
    """
    settings = _settings(file)
    loaded, built, board = _compiled(settings)
    special = explain.special(zone for zone, _ in settings.dns.forward)
    what = effective.read(built, board, settings, special)
    made = render.render(what, format_, embargo.__version__, serial)
    show.as_json(render.as_data(what, made.entries)) if as_json else print(made.text, end="")
    lost = [f"not exported: {text}" for text in made.omitted]
    if loaded.problems:
        lost.append(f"{len(loaded.problems)} problems with the lists; embargo check shows them")
    for text in lost:
        print(show.clean(text), file=sys.stderr)


# ── the block log ────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--app", default="", help="Only this app.")
@click.option("--client", default="", help="Only this client.")
@click.option("--since", default="", help="From a time on: 10m, 2h, 1d, or 2026-01-31T12:00:00Z.")
@click.option("--layer", type=click.Choice(["dns", "drop"]), help="Only names or only addresses.")
def log(file: str, follow: bool, app: str, client: str, since: str, layer: str | None, as_json: bool) -> None:
    """Every blocked attempt: client, name or address, app, list and line. With --json the raw lines."""
    path = _events(file)
    start = _since(since) if since else ""
    for line in _event_lines(path, follow):
        try:
            told = json.loads(line)
        except ValueError:
            continue
        shown = {"dns", "drop"} if layer is None else {layer}
        if (
            (told.get("event") in shown or (layer is None and not app and not client))
            and app in ("", told.get("app"))
            and client in ("", told.get("client"))
            and str(told.get("ts", "")) >= start
        ):
            print(line if as_json else show.event(told), flush=follow)


@verb(reads=True)
@click.option("--since", default="10m", show_default=True, help="What to count from: 10m, 2h, 1d, or a time.")
@click.option("-n", "--rows", type=click.IntRange(1, 1000), default=10, show_default=True, help="Rows of each table.")
@click.option("--once", is_flag=True, help="Show it once and end; so does --json, and an output that is no terminal.")
def top(file: str, since: str, rows: int, once: bool, as_json: bool) -> None:
    """A live view of the block log: the apps, clients, names and addresses with the most attempts. Ctrl-C ends it."""
    path = _events(file)
    live = not once and not as_json and sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            counted = _counted(path, _since(since))
            if as_json:
                show.as_json({kind: [list(each) for each in found.most_common(rows)] for kind, found in counted.items()})
            else:
                show.top(counted, rows, since, clear=live)
            if not live:
                return
            time.sleep(2.0)


def _counted(path: str, start: str) -> dict[str, Counter[str]]:
    """Attempts by app and function, by client, by name and by address."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ("apps", "clients", "names", "addresses")}
    for line in _event_lines(path, follow=False):
        with contextlib.suppress(ValueError, TypeError):
            told = json.loads(line)
            if told.get("event") in ("dns", "drop") and "app" in told and str(told["ts"]) >= start:
                count = int(told.get("count", 1))
                found["apps"][f"{told['app']}/{told['function']}"] += count
                for kind, key in (("clients", "client"), ("names", "qname"), ("addresses", "dst")):
                    if key in told:
                        found[kind][str(told[key])] += count
    return found


def _since(text: str) -> str:
    """The earliest timestamp to show."""
    if found := re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII):
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        seconds = timedelta(**{unit: int(found[1])}).total_seconds()
        return datetime.fromtimestamp(max(time.time() - seconds, 0), _UTC).strftime(_STAMP)
    try:
        return datetime.fromisoformat(text).astimezone(_UTC).strftime(_STAMP)
    except (ValueError, OverflowError):
        raise click.BadParameter(f'"{text}" is not a time; write 10m, 2h, 1d or 2026-01-31T12:00:00Z') from None


_STAMP = "%Y-%m-%dT%H:%M:%S"
_UTC = datetime.fromisoformat("1970-01-01T00:00:00+00:00").tzinfo


def _event_lines(path: str, follow: bool) -> Iterator[str]:
    """The rotated files from the oldest, the file itself, and then what is added to it."""
    number = 1
    while os.path.exists(f"{path}.{number}"):
        number += 1
    try:
        for old in range(number - 1, 0, -1):
            yield from _lines(f"{path}.{old}", follow=False)
        yield from _lines(path, follow=follow)
        while follow:  # it was rotated: what is written now stands in a new file of the same name
            yield from _lines(path, follow=True)
    except PermissionError as error:
        hint = "run it as root, or as the agent's user (embargo with the package)"
        raise ControlError(f"{error.filename}: {error.strerror}; {hint}") from None
    except FileNotFoundError as error:
        raise ControlError(f"{error.filename}: {error.strerror}; no agent has run with this [log] events") from None
    except OSError as error:
        raise ControlError(f"{error.filename}: {error.strerror}") from None


def _lines(path: str, *, follow: bool) -> Iterator[str]:
    """The whole lines of a file; with `follow` also those to come, until another file has its name."""
    with open(path, "rb") as opened:
        pending = b""
        while True:
            replaced = follow and os.stat(path).st_ino != os.fstat(opened.fileno()).st_ino
            while chunk := opened.read(1 << 20):
                *whole, pending = (pending + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if replaced or not follow:
                return
            time.sleep(0.2)


# ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("--samples", type=click.IntRange(1), default=5, show_default=True,
              help="Names and networks of each app and function that are tried.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Try every name and network that is blocked.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones a sample holds; the same seed, the same ones.")
def verify(file: str, samples: int, everything: bool, seed: int, as_json: bool) -> None:
    """Proves with real packets that the running agent blocks what it should. Needs root; no packet leaves this machine.

    A client in a network namespace of its own asks for listed names and connects to listed addresses, by every way round the
    filter too; a sink in another one shows what gets through. Exit status 0: nothing leaks, 1: something does, or no agent
    runs. What could not be proven (another firewall drops it too) is told and is no leak. The attempts stand in the block log
    like any client's.
    """
    settings = _settings(file)
    if not {privileges.CAP_NET_ADMIN, privileges.CAP_SYS_ADMIN} <= set(privileges.effective()):
        _fail("embargo verify needs root: it makes network namespaces", USAGE)
    from embargo.verify import run as verification  # slow to load, and for this verb alone

    try:
        told = verification.run(settings, samples=0 if everything else samples, seed=seed)
    except NotRunning as error:
        if as_json:
            show.as_json({"ok": False, "running": False, "reason": str(error)})
            sys.exit(NO)
        raise
    show.as_json(told) if as_json else show.verify(told)
    sys.exit(0 if told["ok"] else NO)


# ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb()
def reload(file: str) -> None:
    """Read everything again; returns when the new generation is in force, or 1 with the reason."""
    try:
        told = _answer(_settings(file), "reload")
    except ConfigError as error:
        _fail(f"{error}\nnothing changed; what is in force stays in force", USAGE)
    _changed(told)


@verb()
def rollback(file: str) -> None:
    """The generation before the current one back in force: its lists, apps, functions and mode, with today's other settings.

    It holds until the next reload that has a cause: a file that changes, another address or resolver of this machine's, a
    restart, embargo reload, block, allow or forget. Mend the lists or the configuration meanwhile.
    """
    _changed(_ask(file, "rollback"))
    print("its lists, apps, functions and mode, with today's other settings; the next reload takes the files as they are then")


@verb()
@click.argument("entries", nargs=-1, required=True, metavar="ENTRY…")
def block(file: str, entries: tuple[str, ...]) -> None:
    """Add names or networks to the agent's own block list; in force when the command returns."""
    _changed(_ask(file, "block", entries=list(entries)))


@verb()
@click.argument("entries", nargs=-1, required=True, metavar="ENTRY…")
def allow(file: str, entries: tuple[str, ...]) -> None:
    """Add names or networks to the agent's own allow list, which comes before everything else."""
    _changed(_ask(file, "allow", entries=list(entries)))


@verb()
@click.argument("entries", nargs=-1, required=True, metavar="ENTRY…")
def forget(file: str, entries: tuple[str, ...]) -> None:
    """Take entries out of the agent's own lists again."""
    _changed(_ask(file, "forget", entries=list(entries)))


@verb()
@click.argument("words", nargs=-1, required=True, metavar="[APP] DURATION")
@click.option("--client", default="", help="Only for this client: an address or a network.")
def pause(file: str, words: tuple[str, ...], client: str) -> None:
    """Let an APP, or everything, pass for a while: 90s, 10m, 1h30m, 2d. It ends by itself and shows in status.

    With --client for one client alone. It survives a restart, and embargo resume ends it early.
    """
    *app, duration = words
    if len(app) > 1:
        raise click.UsageError(f"name one app and a duration, not {len(words)} words")
    told = _ask(file, "pause", app="".join(app), client=client, duration=duration)
    _done(told)
    show.lines(f"paused: {show.paused(each)}" for each in told["pauses"])


@verb()
@click.argument("app", required=False)
@click.option("--client", default="", help="Only the pauses of this client.")
def resume(file: str, app: str | None, client: str) -> None:
    """End every pause, or those of an APP or a client."""
    told = _ask(file, "resume", app=app or "", client=client)
    _done(told)
    show.lines(["resumed", *(f"still paused: {show.paused(each)}" for each in told["pauses"])])


def _changed(told: Told) -> None:
    _done(told)
    print(f"generation {told['generation']} is in force" + ("" if told["changed"] else ", nothing changed"))


def _done(told: Told) -> None:
    """Was it? Otherwise the reason, and the end."""
    texts = [*told["errors"], *told.get("warnings", ()), *told.get("problems", ())]
    for text in texts[: supervisor.TOLD]:
        print(show.clean(text), file=sys.stderr)
    if len(texts) > supervisor.TOLD:
        print(f"and {len(texts) - supervisor.TOLD} more; embargo check shows all", file=sys.stderr)
    if not told["ok"]:
        print(f"nothing changed; generation {told['generation']} stays in force", file=sys.stderr)
        sys.exit(NO)


@verb()
def version(file: str) -> None:
    """The version of this program."""
    del file
    print(f"embargo {embargo.__version__}")
