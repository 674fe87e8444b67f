"""TOML text → a frozen Config, all problems at once.

Each option is declared once, as a field of its section: type, default, check, and the help that the reference and the man page
show. Values are checked first; a wrong one is reported and has its default in the Config.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from embargo import checks, names, toml
from embargo.checks import Check, Option, Several, choice, integer, many, option, widened
from embargo.dns.upstream import SCHEMES, Server
from embargo.errors import BadValue, ConfigError, Problem
from embargo.lists.policy import Selection
from embargo.names import Name

BLOCK_MODES = ("nxdomain", "nodata", "null", "refused")
CT_MARK = 0xFF00_0000  # default bits of the connection mark


class Listen(NamedTuple):
    """`address` and `port`, or an interface (`address` is empty) whose addresses are meant."""

    address: str
    port: int
    interface: str = ""


# ── checks of our own ────────────────────────────────────────────────────────────────────────────────────────────────────


def _listen(value: Any) -> Listen:
    if not isinstance(value, str):
        raise BadValue("wrong type", 'write "address:port" or an interface name')
    name, colon, port = value.partition(":")
    if name == "localhost":
        at = checks.port(port) if colon else 53
        raise BadValue(f'"{value}" is a host name', f'write "127.0.0.1:{at}" and "[::1]:{at}"')
    if name and not name[0].isdecimal() and (colon + port).count(":") < 2 and name[0] != "[":
        return Listen("", checks.port(port) if colon else 53, checks.interface(name))
    listen = Listen(*checks.endpoint(value, 53))
    if ":" in listen.address and "%" not in listen.address and ipaddress.IPv6Address(listen.address).is_link_local:
        hint = f'name its interface, as in "[{listen.address}%lan0]:{listen.port}"'
        raise BadValue(f'"{value}" is a link-local address, which each interface may have', hint)
    return listen


def _metrics(value: Any) -> Listen | None:
    if value == "":
        return None
    hint = 'write it as in "127.0.0.1:9153"'
    if not isinstance(value, str):
        raise BadValue("wrong type", hint)
    if not re.fullmatch(r"(\d[\d.]*|\[[0-9A-Fa-f:.]+\]):\d+", value, re.ASCII):
        raise BadValue(f'"{value}" is not an address with a port', hint)
    return Listen(*checks.endpoint(value, 53))


def _source(value: Any) -> str:
    return "local" if value == "local" else str(_NETWORK_OR_LOCAL(value))


_NETWORK_OR_LOCAL = widened(checks.network, '"local"')


def _server(value: Any) -> Server:
    if not isinstance(value, str):
        raise BadValue("wrong type", 'write an address such as "192.0.2.53"')
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "udp", value
    if scheme not in SCHEMES:
        raise BadValue(f'"{value}" has an unknown scheme', "write an address alone, tcp://address or tls://address#name")
    at, mark, name = rest.partition("#")
    if mark and scheme != "tls":
        raise BadValue(f'"{value}" names a certificate, which only TLS has', f'write "tls://{rest}"')
    address, port = checks.endpoint(at, SCHEMES[scheme])
    return Server(address, port, scheme, _certificate_name(name) if mark else "")


def _certificate_name(text: str) -> str:
    name = checks.host(text)
    if name is None:
        raise BadValue(
            f'"{text}" is not a name that a certificate can have',
            "write it as in tls://192.0.2.54#resolver.example; without # the certificate must be for the address",
        )
    return name


def _upstream(value: Any) -> Server | str:
    return "system" if value == "system" else _server(value)


def _forward(value: Any) -> tuple[tuple[str, tuple[Server, ...]], ...]:
    if not isinstance(value, dict):
        raise BadValue("wrong type", 'write { "corp.example" = ["192.0.2.10"] }')
    zones: list[tuple[toml.Path, Any, Check]] = [((zone,), zone, _zone) for zone in value]
    checked = checks.members([*zones, *(((zone,), servers, many(_server, least=1)) for zone, servers in value.items())])
    zone_names, servers = checked[: len(value)], checked[len(value) :]
    if doubled := [zone for zone, name in zip(value, zone_names, strict=True) if zone_names.count(name) > 1]:
        raise BadValue(f"{' and '.join(map(_quoted, doubled))} are the same zone", "write it once, with all its servers")
    return tuple(zip(value, servers, strict=True))


def _zone(zone: str) -> Name:
    if zone == ".":
        raise BadValue("the root zone cannot be forwarded", "set dns.upstream instead")
    return checks.zone(zone)


def _listed_zone(value: Any) -> str:
    zone = checks.text(value)
    try:
        return names.to_text(checks.zone(zone))
    except BadValue as refused:
        raise BadValue(f'"{zone}" {refused.message}', refused.hint) from None


def _local_zone(value: Any) -> str:
    return "." if value == "." else _listed_zone(value)


def _workers(value: Any) -> int | None:
    return None if value == "auto" else widened(integer(0, 64), '"auto"')(value)


def _block_mode(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list):
        return many(lambda item: checks.address(checks.text(item)), least=1)(value)
    mode: str = widened(choice(*BLOCK_MODES), "a list of addresses")(value)
    return mode


# ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Dns:
    listen: tuple[Listen, ...] = option(
        ["127.0.0.1:53", "[::1]:53"],
        many(_listen, least=1),
        "addresses to answer on, UDP and TCP; an interface name stands for its addresses",
    )
    allow_from: tuple[str, ...] = option(
        ["local"],
        many(_source),
        '"local" (loopback, private and link-local addresses, and the networks of the lan interfaces) or networks; '
        "others get no answer",
    )
    upstream: tuple[Server, ...] = option(
        ["system"],
        many(_upstream, least=1),
        '"system" (the resolvers of this machine) or addresses: "192.0.2.53", "tcp://192.0.2.53", '
        '"tls://192.0.2.54#resolver.example" (the name in its certificate; without #, its address), each with optional :port',
        value=(),
    )
    upstream_system: bool = True  # whether upstream contains "system", which is not in the field
    tls_ca: str = option("", checks.path_or_empty, "CA certificates (PEM) for tls:// upstreams; empty: those of the system")
    forward: tuple[tuple[str, tuple[Server, ...]], ...] = option(
        {}, _forward, 'zones with resolvers of their own: { "corp.example" = ["192.0.2.10"] }; reverse zones too'
    )
    hosts: tuple[str, ...] = option([], many(checks.path), "hosts files with local records")
    local: tuple[str, ...] = option(
        [],
        many(_local_zone),
        'zones whose names are never sent to an upstream: hosts files have them, or they do not exist; "." stands for names of '
        'one label. Write ["lan", "internal", "."] for those of a usual LAN',
    )
    workers: int | None = option(
        "auto", _workers, "resolver processes: auto (one per processor, at most 4) or a number; 0: inside the main process"
    )
    block_mode: str | tuple[str, ...] = option(
        "nxdomain", _block_mode, 'answer to a blocked name: nxdomain, nodata, null, refused or ["address", …]'
    )
    block_ttl: int = option(10, integer(0, 86400), "TTL of the answer to a blocked name, in seconds")
    rebind: bool = option(
        False,
        checks.boolean,
        "true: remove private addresses from upstream answers, except for zones in [dns] forward and names on the allow list "
        "(protection against DNS rebinding)",
    )
    rebind_except: tuple[str, ...] = option(
        [], many(_listed_zone), "zones whose names may have private addresses all the same, such as a mail block list"
    )
    ech: str = option(
        "keep",
        choice("keep", "strip"),
        "keep, or strip: remove keys for Encrypted Client Hello from answers, so that server names stay visible",
    )


@dataclass(frozen=True, slots=True)
class Lists:
    apps: tuple[str, ...] = option(
        ["/usr/share/embargo/blocklists", "/etc/embargo/apps.d"],
        many(checks.path, least=1),
        "directories of apps; an app in a later directory replaces one with the same id",
    )
    allow: str = option(
        "/etc/embargo/allow.list", checks.path, "the administrator's exceptions; they take precedence over all other lists"
    )
    block: str = option("/etc/embargo/block.list", checks.path, "the administrator's additions")


@dataclass(frozen=True, slots=True)
class Firewall:
    enabled: bool = option(True, checks.boolean, "block addresses with nftables")
    lan: tuple[str, ...] = option(
        [],
        many(checks.interface),
        "interfaces of filtered clients; empty: all forwarded traffic is filtered, and port 53 is not intercepted",
    )
    except_: tuple[str, ...] = option([], many(checks.network), "client addresses or networks that are never filtered")
    intercept_dns: bool = option(
        True, checks.boolean, "on lan interfaces, redirect port 53 to this resolver, whatever its destination"
    )
    learn: bool = option(
        True, checks.boolean, "also block the addresses of blocked names, unless names that are not blocked share them"
    )
    fail: str = option(
        "closed",
        choice("closed", "open"),
        "port 53 of clients on lan interfaces while no resolver runs: closed (rejected) or open (passed unfiltered)",
    )
    on_stop: str = option(
        "keep",
        choice("keep", "remove"),
        "keep or remove the rules when the agent stops; with fail = open, port 53 of clients passes in both cases",
    )
    log_group: int = option(8137, integer(0, 65535), "NFLOG group on which the agent receives rejected packets")
    ct_mark: int = option(
        checks.Hex(CT_MARK),
        checks.mask,
        "bits of the connection mark that record which flows were let through; change it if other software uses these mark "
        "bits; 0: every packet is checked again",
    )
    protect: bool = option(True, checks.boolean, "no other process can change or flush the table (Linux 6.9 or later)")


@dataclass(frozen=True, slots=True)
class Log:
    events: str = option("/var/log/embargo/events.jsonl", checks.path, "the event log")
    names: str = option(
        "blocked",
        choice("blocked", "all", "none"),
        "queries that are logged: blocked, all, or none (blocked ones, without their names)",
    )
    max_bytes: int = option(64 << 20, integer(4096, 1 << 40), "size at which the event log is rotated, in bytes")
    keep: int = option(5, integer(1, 1000), "rotated event logs to keep")


@dataclass(frozen=True, slots=True)
class Metrics:
    listen: Listen | None = option("", _metrics, "address:port where Prometheus finds /metrics; empty: disabled")


@dataclass(frozen=True, slots=True)
class State:
    dir: str = option("/var/lib/embargo", checks.path, "directory of the compiled policies and the agent's own lists")
    runtime: str = option("/run/embargo", checks.path, "directory of the control socket")
    user: str = option(
        "embargo-dns",
        checks.text,
        "user that resolvers run as (nobody if it does not exist); must equal User= in embargo-resolver@.service",
    )
    group: str = option(
        "embargo",
        checks.text,
        "group that may use the control socket; the agent must be a member: SupplementaryGroups= in its unit",
    )


@dataclass(frozen=True, slots=True)
class Config:
    file: str = ""
    dns: Dns = Dns()
    policy: Selection = Selection()
    lists: Lists = Lists()
    firewall: Firewall = Firewall()
    log: Log = Log()
    metrics: Metrics = Metrics()
    state: State = State()
    text: str = field(default="", compare=False, repr=False)  # as read; configurations with equal values are equal

    @property
    def control(self) -> str:
        """The path of the control socket."""
        return f"{self.state.runtime}/control.sock"

    def line(self, *path: str | int) -> int:
        """The line of a key in the file, for problems found outside this module; 0 when the file does not contain it."""
        return toml.Lines(self.text).at(*path)


SECTIONS: dict[str, type] = {each.name: type(each.default) for each in fields(Config) if is_dataclass(each.default)}
OPTIONS: dict[str, dict[str, Option]] = {name: checks.options(section) for name, section in SECTIONS.items()}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of reading a text with or without problems: each unusable value is replaced by its default."""

    config: Config
    problems: tuple[Problem, ...]
    wrong: frozenset[str]  # sections with problems, and unknown sections
    written: frozenset[tuple[str, str]]  # (section, key) of the usable values in the text


def parse(data: bytes, file: str) -> Config:
    """The configuration. Raises ConfigError with every problem found."""
    reading = read(data, file)
    if reading.problems:
        raise ConfigError(reading.problems)
    return reading.config


def read(data: bytes, file: str) -> Reading:
    """The usable part of a configuration, and its problems. Raises ConfigError when it is not TOML."""
    raw, text = toml.parse(data, file)
    wrong: list[Wrong] = [each for name, section in raw.items() for each in _unknown(name, section)]
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        section = raw.get(name, {})
        sections[name] = _section(name, section if isinstance(section, dict) else {}, wrong)
    keys = {(name, key) for name, section in raw.items() if isinstance(section, dict) for key in section}
    return Reading(
        Config(file=file, text=text, **sections),
        _problems(file, text, wrong) if wrong else (),
        frozenset(str(path[0]) for path, _ in wrong),
        frozenset(keys - {path[:2] for path, _ in wrong}),
    )


def default(file: str = "") -> Config:
    """The configuration of an empty file."""
    return Config(file)


Wrong = tuple[toml.Path, BadValue]


def _section(name: str, raw: Mapping[str, Any], wrong: list[Wrong]) -> Any:
    """A section with the values in `raw`, except for wrong ones, which are appended to `wrong`."""
    values: dict[str, Any] = {}
    for key, each in OPTIONS[name].items():
        try:
            if key in raw:
                values[key] = each.check(raw[key])
        except BadValue as refused:
            wrong.append(((name, key), refused))
        except Several as several:
            wrong += [((name, key, *below), refused) for below, refused in several.bad]
    if "except" in values:  # a Python keyword
        values["except_"] = values.pop("except")
    if "upstream" in values:
        servers = values["upstream"]
        values |= {"upstream": tuple(each for each in servers if each != "system"), "upstream_system": "system" in servers}
    return SECTIONS[name](**values)


# ── problems ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _problems(file: str, text: str, wrong: Iterable[Wrong]) -> tuple[Problem, ...]:
    """In the order of their lines."""
    lines = toml.Lines(text)
    found = (Problem(file, lines.at(*path), f"{_place(path)}: {what.message}", what.hint) for path, what in wrong)
    return tuple(sorted(found, key=lambda problem: problem.line))


def _place(path: toml.Path) -> str:
    """dns.upstream[1], dns.forward."corp.example"[0]"""
    words = [f"[{key}]" if isinstance(key, int) else f".{key if _BARE.fullmatch(key) else _quoted(key)}" for key in path]
    return "".join(words).removeprefix(".")


_BARE = re.compile(r"[A-Za-z0-9_-]+")  # keys that TOML accepts without quotes


def _quoted(text: str) -> str:
    return f'"{text}"'


def _unknown(name: str, section: Any) -> Iterator[Wrong]:
    """Sections and keys that do not exist, with the most likely intention."""
    if name not in OPTIONS:
        yield (name,), BadValue("unknown section", _belongs(name) or _suggestion(name, OPTIONS, "sections"))
    elif not isinstance(section, dict):
        yield (name,), BadValue("wrong type", f"it is a section, [{name}]")
    else:
        for key in section:
            if key not in OPTIONS[name]:
                hint = "" if checks.closest(key, OPTIONS[name]) else _belongs(key)
                yield (name, key), BadValue("unknown key", hint or _suggestion(key, OPTIONS[name], "keys"))


def _suggestion(word: str, known: Mapping[str, Any], what: str) -> str:
    near = checks.closest(word, known)
    return f'did you mean "{near}"?' if near else f"known {what} are {', '.join(known)}"


def _belongs(key: str) -> str:
    """For a key in the wrong section, or in none."""
    sections = [name for name, options in OPTIONS.items() if key in options and name != key]
    return f"it belongs in [{sections[0]}]" if sections else ""


# ── the reference ────────────────────────────────────────────────────────────────────────────────────────────────────────


def reference() -> str:
    """Every option with its default and help, as a configuration file with all keys commented out."""
    out = ["# Embargo's configuration. Every key is optional; the values shown are the defaults.", ""]
    for name, options in OPTIONS.items():
        out.append(f"[{name}]")
        for key, each in options.items():
            out += [f"# {each.help}", f"#{key} = {literal(each.default)}"]
        out.append("")
    return "\n".join(out)


def literal(value: Any) -> str:
    """A default as it would be written in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, checks.Hex):
        return f"0x{value:08x}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def unknown_apps(config: Config, apps: Collection[str]) -> Iterator[Problem]:
    """A problem for each id in [policy] that none of these apps has."""
    for key, chosen in (("apps", config.policy.apps), ("shared", config.policy.shared)):
        for number, app in enumerate(chosen if isinstance(chosen, tuple) else ()):
            if app not in apps:
                near = checks.closest(app, apps)
                hint = f'did you mean "{near}"?' if near else f"there are {', '.join(sorted(apps)) or 'none'}"
                yield Problem(config.file, config.line("policy", key, number), f'policy.{key}: no app "{app}"', hint)
