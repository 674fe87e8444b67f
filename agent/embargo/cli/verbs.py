"""The command line: each verb with its options, most of them one request to a running agent.

Exit status: 0 success, 1 negative answer or failed request, 2 unusable command line or configuration.
"""

import contextlib
import ipaddress
import sys
from collections.abc import Callable

import click

import embargo
from embargo import checks
from embargo.cli import command, show
from embargo.cli.command import NO, USAGE, Verb
from embargo.config import Config
from embargo.daemon.ask.client import NotRunning
from embargo.daemon.ask.orders import (
    Allow,
    Block,
    Catalogue,
    Changed,
    Explained,
    Flush,
    Forget,
    GetApps,
    GetStatus,
    Pause,
    Reload,
    Resume,
    Rollback,
    Why,
)
from embargo.errors import ConfigError
from embargo.export.formats import FORMATS

SHOWN = 20  # problems printed one by one after a change; a list in the wrong format has one per line


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(embargo.__version__, prog_name="embargo", message="%(prog)s %(version)s", help="Print the version.")
def cli() -> None:
    """Block chosen apps on a network: their domain names, their addresses, and many of the known ways around both."""


def main() -> None:
    """The program `embargo`."""
    cli.main(prog_name="embargo")


def verb(*, reads: bool = False) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: make a function the subcommand of its name."""
    return cli.command(cls=Verb, reads=reads)


@verb()
@click.option("--units", default="", metavar="DIRECTORY", help="Used by the systemd service only.")
def run(file: str, units: str) -> None:
    """Run the agent in the foreground. SIGHUP reloads; SIGTERM and SIGINT stop it."""
    from embargo.cli import agent

    agent.run(command.settings(file), units)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("--lists", "every_list", is_flag=True, help="Show every list, not only those with problems.")
def status(file: str, every_list: bool, as_json: bool) -> None:
    """Show the state of the running agent.

    What runs, which policy is in force, upstreams, apps, problems, and what is not covered. Exit status 1 if no agent runs.
    """
    try:
        told = command.ask(file, GetStatus())
    except NotRunning as error:
        if as_json:
            show.as_json({"running": False, "reason": str(error)})
            sys.exit(NO)
        raise
    show.as_json(told) if as_json else show.status(told, every_list=every_list)


@verb(reads=True)
@click.argument("subject", metavar="NAME|ADDRESS")
@click.option(
    "--type", "qtype", default="A", show_default=True, metavar="TYPE", help="DNS record type to judge, such as AAAA or HTTPS."
)
@click.option("--client", default="", metavar="ADDRESS", help="Answer for this client (pauses and exceptions may differ).")
def why(file: str, subject: str, qtype: str, client: str, as_json: bool) -> None:
    """Explain why a name or address is blocked or not.

    Names the list and line that decide. Exit status 0 if it is blocked, 1 if it is not. Without a running agent, the answer
    comes from the configured lists.
    """

    def offline(chosen: Config) -> Explained:
        from embargo.cli import offline

        try:
            return offline.why(chosen, subject, qtype, client)
        except ValueError as error:
            command.fail(str(error), USAGE)

    found = command.ask_or(file, offline, Why(subject, qtype, client))
    show.as_json(found) if as_json else show.why(found)
    sys.exit(0 if found.verdict == "blocked" else NO)


@verb(reads=True)
@click.argument("app", required=False, metavar="[APP]")
def apps(file: str, app: str | None, as_json: bool) -> None:
    """List the apps of the catalogue, or show one APP.

    Shows each app's functions, whether each is blocked, how many entries it has, and how many attempts were blocked since the
    agent started. Without a running agent, the attempts are not known; everything else comes from the configured lists.
    """

    def offline(chosen: Config) -> Catalogue:
        from embargo.cli import offline

        return offline.apps(chosen)

    rows = command.ask_or(file, offline, GetApps()).apps
    if app is not None:
        rows = tuple(row for row in rows if row.id == app)
        if not rows:
            command.fail(f'no app "{app}"; `embargo apps` lists them', NO)
    if as_json:
        show.as_json(rows)
    elif app is not None:
        show.app(rows[0])
    else:
        show.apps(rows)


@verb(reads=True)
def check(file: str, as_json: bool) -> None:
    """Check the configuration, lists and ruleset.

    Reports all problems at once. Exit status 0: no problems, 1: problems, 2: problems in the configuration file. Lists are
    checked too, unless the configuration file cannot be read or its sections [lists] or [state] are wrong.
    """
    from embargo.cli import check as checking

    wrong, problems, unchecked = checking.run(file)
    if as_json:
        every = [problem._asdict() for problem in (*wrong, *problems)]
        show.as_json({"ok": not every, "problems": every, "unchecked": unchecked})
    else:
        show.lines(map(str, (*wrong, *problems)))
        print(_count(len(wrong) + len(problems)))
        if unchecked:
            print(f"not checked: {', '.join(unchecked)}; correct the configuration first")
    sys.exit(USAGE if wrong else NO if problems else 0)


@verb(reads=True)
@click.argument("format_", metavar=f"{{{'|'.join(FORMATS)}}}", type=click.Choice(list(FORMATS)))
@click.option(
    "--serial",
    type=click.IntRange(0, 0xFFFF_FFFF),
    metavar="NUMBER",
    help="rpz: SOA serial. Default: a hash of the content, which does not increase; secondaries need an increasing one.",
)
def export(file: str, format_: str, serial: int | None, as_json: bool) -> None:
    """Write the policy in the format of other software.

    Reads the configured lists; no agent needs to run.

    rpz: response policy zone, for BIND and others. hosts: exact names, not their subdomains. domains: names including their
    subdomains. dnsmasq, unbound: configuration lines. adblock: for AdGuard Home and Pi-hole. nft: addresses, for nft -f.
    What the format cannot express is reported on standard error and in the header. --json prints the entries
    that the chosen format can express, each with the line that decides.
    """
    from embargo.cli import offline

    exported, problems = offline.export(command.settings(file), format_, serial)
    show.as_json(exported.entries) if as_json else print(exported.text, end="")
    command.complain(f"not exported: {text}" for text in exported.omitted)
    if problems:
        command.complain([f"the lists have {_count(problems)}; embargo check shows all"])


# ── the event log ────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("-f", "--follow", is_flag=True, help="Wait for new events and print them.")
@click.option("--app", default="", metavar="APP", help="Show only this app.")
@click.option("--client", default="", metavar="ADDRESS", help="Show only this client.")
@click.option("--since", default="", metavar="TIME", help="Show events since: 10m, 2h, 1d, or 2026-01-31T12:00:00Z.")
@click.option(
    "--layer", type=click.Choice(["dns", "drop"]), help="Show only blocked queries (dns), or rejected packets (drop)."
)
def log(file: str, follow: bool, app: str, client: str, since: str, layer: str | None, as_json: bool) -> None:
    """Print the event log.

    Blocked attempts with client, name or address, app, list and line, and the agent's own events: start, reload, changes of the
    policy. --json prints the lines as they are stored.
    """
    from embargo.cli import eventlog

    reader = eventlog.Reader(_events(file))
    client = _client(client)
    if app:
        _check_app(file, app)
    for line, told in reader.select(since, follow=follow, app=app, client=client, layer=layer):
        print(line if as_json else show.event(told), flush=follow)
    _warn_of_passed_over(reader.passed_over)


@verb(reads=True)
@click.option(
    "--since",
    default="10m",
    show_default=True,
    metavar="TIME",
    help="Count attempts of the last 10m, 2h or 1d, or since a time.",
)
@click.option("-n", "--rows", type=click.IntRange(1, 1000), default=10, show_default=True, help="Rows per table.")
@click.option("--once", is_flag=True, help="Print once and exit; implied by --json and if the output is not a terminal.")
def top(file: str, since: str, rows: int, once: bool, as_json: bool) -> None:
    """Show the most frequent blocked attempts, live.

    Counted by app, client, name and address. Ctrl-C exits.
    """
    from embargo.cli import eventlog

    live = not once and not as_json and sys.stdout.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        reader = eventlog.Reader(_events(file))
        for counted in reader.counts(since, repeat=live):
            if as_json:
                show.as_json({kind: [list(each) for each in found.most_common(rows)] for kind, found in counted.items()})
            else:
                show.top(counted, rows, since, clear=live)
            _warn_of_passed_over(reader.passed_over)


def _client(text: str) -> str:
    """An address as events have it; the program ends if it is none."""
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        command.fail(f'--client: "{text}" is not an address, write one as in 192.0.2.5 or 2001:db8::5', USAGE)


def _check_app(file: str, app: str) -> None:
    """End the program if there is no such app: an empty answer would look like no attempts."""
    known = command.apps(file)
    if app not in known:
        near = checks.closest(app, known)
        command.fail(f'--app: no app "{app}"; ' + (f'did you mean "{near}"?' if near else "`embargo apps` lists them"), USAGE)


def _warn_of_passed_over(lines: int) -> None:
    if lines:
        print(f"{lines} line{'s' if lines != 1 else ''} of the log could not be read and were left out", file=sys.stderr)


def _count(problems: int) -> str:
    return f"{problems} problem{'s' if problems != 1 else ''}" if problems else "no problems"


def _events(file: str) -> str:
    """Path of the event log."""
    chosen, problems = command.usable(file, ("log", "events"))
    command.warn(problems)
    return chosen.log.events


# ── proving ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@verb(reads=True)
@click.option("--samples", type=click.IntRange(1), default=5, show_default=True,
              help="Names and networks to try per app and function.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Try every blocked name and network.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the sample: the same seed tries the same entries."
)
def verify(file: str, samples: int, everything: bool, seed: int, as_json: bool) -> None:
    """Prove with real packets that blocking works.

    Requires root and a running agent. A client in its own network namespace queries listed names and connects to listed
    addresses, directly and by the ways around the filter (docs/verify.md lists them). A sink in another namespace shows what
    gets through. None of the client's packets leaves the machine; the agent may query its upstreams for the names. Exit
    status 0: no leak found, 1: a leak, or no agent runs. A probe that proves nothing, for instance because another firewall
    drops it, is reported as unproven and does not count as a leak. The attempts appear in the event log.
    """
    chosen = command.settings(file)
    from embargo.daemon.process import privileges

    if not {privileges.CAP_NET_ADMIN, privileges.CAP_SYS_ADMIN} <= set(privileges.effective()):
        command.fail("embargo verify requires root: it creates network namespaces", USAGE)
    from embargo.verify import run as verification

    try:
        told = verification.run(chosen, samples=0 if everything else samples, seed=seed)
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
    """Read the configuration and lists again.

    Returns when the new policy is in force, or fails with the reason. Each compilation of the lists has a number, its
    generation.
    """
    try:
        told = command.answer(command.settings(file), Reload())
    except ConfigError as error:
        command.fail(f"{error}\nnothing changed; the current policy stays in force", USAGE)
    _changed(told)


@verb()
@click.argument("name", required=False)
def flush(file: str, name: str | None) -> None:
    """Forget the cached answers for NAME and all names below it.

    Without NAME: all answers. In both cases all resolver processes forget them, and remembered failures too. Clients and
    their own resolvers may go on using what they were told before.
    """
    count = command.ask(file, Flush(name)).answers
    print(
        f"{count} cached answer{'' if count == 1 else 's'} forgotten" + (f", for {name} and all names below it" if name else "")
    )


@verb()
def rollback(file: str) -> None:
    """Return to the previous policy.

    Restores its lists, apps, functions and mode; other settings stay as they are now. It stays in force until something
    causes a reload: a changed file, a changed address or resolver of this machine, a restart, or embargo reload, block, allow
    or forget. The files are then used as they are, so saving a first correction already ends the rollback. A second rollback
    goes back one policy further; five are stored.
    """
    _changed(command.ask(file, Rollback()))
    print("previous lists, apps, functions and mode are in force; the next reload uses the current files again")


ENTRIES = click.argument("entries", nargs=-1, required=True, metavar="NAME|NETWORK…")


@verb()
@ENTRIES
def block(file: str, entries: tuple[str, ...]) -> None:
    """Block names, with their subdomains, or networks.

    They are kept in local/block.list in the agent's state directory (/var/lib/embargo), also over a restart, until embargo
    forget removes them; your own /etc/embargo/block.list is not changed.
    An allow entry wins over a block entry. The change is in force when the command returns.
    """
    _changed(command.ask(file, Block(entries)))


@verb()
@ENTRIES
def allow(file: str, entries: tuple[str, ...]) -> None:
    """Allow names, with their subdomains, or networks.

    They are kept in local/allow.list in the agent's state directory (/var/lib/embargo), also over a restart, until embargo
    forget removes them; your own /etc/embargo/allow.list is not changed.
    Allow entries win over all others. The change is in force when the command returns.
    """
    _changed(command.ask(file, Allow(entries)))


@verb()
@ENTRIES
def forget(file: str, entries: tuple[str, ...]) -> None:
    """Remove entries that embargo block or embargo allow added.

    The change is in force when the command returns.
    """
    _changed(command.ask(file, Forget(entries)))


@verb()
@click.argument("words", nargs=-1, required=True, metavar="[APP] DURATION")
@click.option("--client", default="", metavar="ADDRESS|NETWORK", help="Pause only for this client address or network.")
def pause(file: str, words: tuple[str, ...], client: str) -> None:
    """Stop blocking one APP, or everything, for a while.

    DURATION is written as 90s, 10m, 1h30m or 2d, at most 30d. A pause ends by itself, survives a restart, and is shown by
    embargo status. embargo resume ends it early.
    """
    *app, duration = words
    if len(app) > 1:
        raise click.UsageError(f"expected an app and a duration, got {len(words)} words")
    if not duration[:1].isdecimal():
        raise click.UsageError("DURATION is missing; write it last, as in 90s, 10m, 1h30m or 2d")
    told = command.ask(file, Pause(duration, "".join(app), client))
    _done(told)
    show.lines(f"paused: {show.paused(each)}" for each in told.pauses or ())


@verb()
@click.argument("app", required=False, metavar="[APP]")
@click.option("--client", default="", metavar="ADDRESS|NETWORK", help="End only the pauses of this client.")
def resume(file: str, app: str | None, client: str) -> None:
    """End all pauses, or those of one APP or client."""
    told = command.ask(file, Resume(app, client))
    _done(told)
    show.lines(["resumed", *(f"still paused: {show.paused(each)}" for each in told.pauses or ())])


def _changed(told: Changed) -> None:
    _done(told)
    print(f"generation {told.generation} is in force" + ("" if told.changed else ", nothing changed"))


def _done(told: Changed) -> None:
    """Print the messages that came with an answer; exit if the change failed."""
    texts = [*told.errors, *told.warnings, *told.problems]
    command.complain(texts[:SHOWN])
    if len(texts) > SHOWN:
        command.complain([f"and {len(texts) - SHOWN} more; embargo check shows all"])
    if not told.ok:
        command.fail(f"nothing changed; generation {told.generation} stays in force", NO)


@verb()
def version(file: str) -> None:
    """Print the version of this program."""
    del file
    print(f"embargo {embargo.__version__}")
