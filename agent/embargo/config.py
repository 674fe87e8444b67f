"""TOML text → a frozen Config, all problems at once.

Each option is declared once, in OPTIONS, with its default, its check and the help that the reference and the man page show.
Raw values are checked first; only when nothing is wrong is the typed Config built.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from embargo import names, toml
from embargo.dns.upstream import SCHEMES, Server
from embargo.errors import ConfigError, Problem, Refused
from embargo.lists.policy import BYPASS_FUNCTIONS, FUNCTIONS, Action, Selection
from embargo.names import Name

BLOCK_MODES = ("nxdomain", "nodata", "null", "refused")
CT_MARK = 0xFF00_0000  # the bits of the conntrack mark that are ours, unless configured otherwise


class Listen(NamedTuple):
    """`address` and `port`, or an interface (`address` empty) whose addresses are meant."""

    address: str
    port: int
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Dns:
    listen: tuple[Listen, ...]
    allow_from: tuple[str, ...]  # networks, or "local"
    upstream: tuple[Server, ...]  # what "system" stands for is left out here
    upstream_system: bool
    tls_ca: str
    forward: tuple[tuple[str, tuple[Server, ...]], ...]
    hosts: tuple[str, ...]
    workers: int | None  # None: as many as the machine has processors, at most 4
    block_mode: str | tuple[str, ...]
    block_ttl: int
    rebind: bool
    ech: str


@dataclass(frozen=True, slots=True)
class Lists:
    apps: tuple[str, ...]
    allow: str
    block: str


@dataclass(frozen=True, slots=True)
class Firewall:
    enabled: bool
    lan: tuple[str, ...]
    except_: tuple[str, ...]
    intercept_dns: bool
    learn: bool
    fail: str
    on_stop: str
    log_group: int
    ct_mark: int
    protect: bool


@dataclass(frozen=True, slots=True)
class Log:
    events: str
    names: str
    max_bytes: int
    keep: int


@dataclass(frozen=True, slots=True)
class Metrics:
    listen: Listen | None


@dataclass(frozen=True, slots=True)
class State:
    dir: str
    runtime: str
    user: str
    group: str


@dataclass(frozen=True, slots=True)
class Config:
    file: str
    dns: Dns
    policy: Selection
    lists: Lists
    firewall: Firewall
    log: Log
    metrics: Metrics
    state: State
    text: str = field(default="", compare=False, repr=False)  # as read; two texts that mean the same are the same configuration

    @property
    def control(self) -> str:
        return f"{self.state.runtime}/control.sock"

    def line(self, *path: str | int) -> int:
        """The line of a key in the file, for what only the world around can find wrong with it; 0 when it has none."""
        return toml.Lines(self.text).at(*path)


_HOST = re.compile(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*(?!\d+$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")  # no address


class _Several(ValueError):
    """What is wrong with the members of a list or table, each with its path below the option."""

    def __init__(self, bad: list[tuple[toml.Path, Refused]]) -> None:
        self.bad = bad
        super().__init__()


_INTERFACE = re.compile(r"[^\x00-\x20/:\"*\\\x7f]+")  # what the kernel takes for a name, less what nft(8) reads otherwise


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise Refused(f'"{text}" is not an IP address', "write it as in 192.0.2.53 or 2001:db8::53") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) < 65536):
        raise Refused(f'"{text}" is not a port', "a port is a number from 1 to 65535")
    return int(text)


def _endpoint(text: str, default: int = 53) -> tuple[str, int]:
    """`192.0.2.1`, `192.0.2.1:53`, `2001:db8::1` or `[2001:db8::1]:53` as address and port."""
    host, port = text, str(default)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise Refused(f'"{text}" is not an address', "write it as in [2001:db8::53]:53")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    return _address(host), _port(port)


def _listen(value: Any) -> Listen:
    if not isinstance(value, str):
        raise Refused("wrong type", 'write "address:port" or an interface name')
    name, colon, port = value.partition(":")
    if name and not name[0].isdecimal() and (colon + port).count(":") < 2 and name[0] != "[":
        return Listen("", _port(port) if colon else 53, _interface(name))
    return Listen(*_endpoint(value))


def _metrics(value: Any) -> Listen | None:
    if value == "":
        return None
    hint = 'write it as in "127.0.0.1:9153"'
    if not isinstance(value, str):
        raise Refused("wrong type", hint)
    if not re.fullmatch(r"(\d[\d.]*|\[[0-9A-Fa-f:.]+\]):\d+", value, re.ASCII):
        raise Refused(f'"{value}" is no address with a port', hint)
    return Listen(*_endpoint(value))


def _server(value: Any) -> Server:
    if not isinstance(value, str):
        raise Refused("wrong type", 'write an address such as "192.0.2.53"')
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "udp", value
    if scheme not in SCHEMES:
        raise Refused(f'"{value}" has an unknown scheme', "write an address alone, tcp://address or tls://address#name")
    at, mark, name = rest.partition("#")
    if mark and scheme != "tls":
        raise Refused(f'"{value}" names a certificate, which only TLS has', f'write "tls://{rest}"')
    address, port = _endpoint(at, SCHEMES[scheme])
    return Server(address, port, scheme, _host(name) if mark else "")


def _host(text: str) -> str:
    """The name that a certificate must be for, as it stands there."""
    try:
        name = names.to_text(names.from_text(text)) if text else ""
    except ValueError:
        name = ""
    if not _HOST.fullmatch(name):
        raise Refused(
            f'"{text}" is no name that a certificate could be for',
            "write it as in tls://192.0.2.54#resolver.example; without # the certificate must be for the address",
        )
    return name


def _network(value: Any) -> str:
    hint = "write it as in 192.0.2.0/24 or 2001:db8::/32"
    if not isinstance(value, str):
        raise Refused("wrong type", hint)
    try:
        interface = ipaddress.ip_interface(value.replace("%", "/"))  # a network has no scope
    except ValueError:
        raise Refused(f'"{value}" is not a network', hint) from None
    if interface.ip != interface.network.network_address:
        raise Refused(f'"{value}" has host bits set', f'write "{interface.network}" or "{interface.ip}"')
    return str(interface.network)


def _source(value: Any) -> str:
    if value == "local":
        return "local"
    try:
        return _network(value)
    except Refused as refused:
        raise Refused(refused.message, f'{refused.hint}, or "local"') from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("wrong type", "it must be a string")
    if not value:
        raise Refused("is empty", "write a name")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("wrong type", "it must be a string, an absolute path")
    if not value.startswith("/") or "\0" in value:
        raise Refused(f'"{value}" is not an absolute path', "write it from / on")
    return value


def _path_or_none(value: Any) -> str:
    return value if value == "" else _path(value)


def _interface(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("wrong type", "it must be a string, an interface name")
    if not _INTERFACE.fullmatch(value) or len(value.encode()) > 15:  # IFNAMSIZ less its zero octet
        raise Refused(f'"{value}" is not an interface name', "see `ip link`; a name has at most 15 octets and no wildcard")
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Refused("wrong type", "it must be true or false")
    return value


def _int(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused("wrong type", f"it must be a number from {low} to {high}")
        if not low <= value <= high:
            raise Refused(f"{value} is out of range", f"it must be a number from {low} to {high}")
        return value

    return check


def _mask(value: Any) -> int:
    mask = _int(0, 0xFFFF_FFFF)(value)
    bits = mask // (mask & -mask) if mask else 0
    if mask and (bits & (bits + 1) or bits < 15):
        raise Refused(f"0x{mask:08x} is not four or more bits in a row", "write it as in 0xff000000, or 0")
    return mask


def _choice(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise Refused("wrong type", f"it must be one of {', '.join(words)}")
        if value not in words:
            near = difflib.get_close_matches(value, words, 1)
            meant = f'did you mean "{near[0]}"? ' if near else ""
            raise Refused(f'"{value}" is not allowed', f"{meant}it must be one of {', '.join(words)}")
        return value

    return check


def _many(check: Callable[[Any], Any], *, least: int = 0) -> Callable[[Any], tuple[Any, ...]]:
    def every(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Refused("wrong type", 'it must be a list, as in ["…"]')
        if len(value) < least:
            raise Refused("is empty", "name at least one")
        return tuple(_members(((number,), item, check) for number, item in enumerate(value)))

    return every


def _members(members: Iterable[tuple[toml.Path, Any, Callable[[Any], Any]]]) -> list[Any]:
    """Every member checked. Raises _Several with all that is wrong."""
    checked: list[Any] = []
    bad: list[tuple[toml.Path, Refused]] = []
    for path, value, check in members:
        try:
            checked.append(check(value))
        except Refused as refused:
            bad.append((path, refused))
        except _Several as several:
            bad += [((*path, *below), refused) for below, refused in several.bad]
    if bad:
        raise _Several(bad)
    return checked


def _either(*words: str | bool, check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One of the words, or a list."""
    shown = ", ".join(f'"{word}"' if isinstance(word, str) else str(word).lower() for word in words)

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return check(value)
        if any(value is word or (isinstance(word, str) and value == word) for word in words):
            return value
        if isinstance(value, str):
            raise Refused(f'"{value}" is not allowed', f"it must be {shown} or a list")
        raise Refused("wrong type", f"it must be {shown} or a list")

    return one


def _forward(value: Any) -> tuple[tuple[str, tuple[Server, ...]], ...]:
    if not isinstance(value, dict):
        raise Refused("wrong type", 'write { "corp.example" = ["192.0.2.10"] }')
    zones: list[tuple[toml.Path, Any, Callable[[Any], Any]]] = [((zone,), zone, _zone) for zone in value]
    checked = _members([*zones, *(((zone,), servers, _many(_server, least=1)) for zone, servers in value.items())])
    names_, servers = checked[: len(value)], checked[len(value) :]
    if doubled := [zone for zone, name in zip(value, names_, strict=True) if names_.count(name) > 1]:
        raise Refused(f"{' and '.join(map(_quoted, doubled))} are one zone", "write it once, with all of its servers")
    return tuple(zip(value, servers, strict=True))


def _zone(zone: str) -> Name:
    try:
        name = names.from_text(zone)
    except ValueError as error:
        raise Refused("is not a domain name", str(error)) from None
    if name == names.ROOT:
        raise Refused("stands for every name", "name its servers in dns.upstream")
    return name


def _quoted(text: str) -> str:
    return f'"{text}"'


def _upstream(value: Any) -> Server | str:
    return "system" if value == "system" else _server(value)


def _workers(value: Any) -> int | None:
    if value == "auto":
        return None
    try:
        return _int(0, 64)(value)
    except Refused as refused:
        raise Refused(refused.message, f'{refused.hint}, or "auto"') from None


def _block_mode(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list):
        return _many(lambda item: _address(_text(item)), least=1)(value)
    try:
        return _choice(*BLOCK_MODES)(value)
    except Refused as refused:
        raise Refused(refused.message, f"{refused.hint}, or a list of addresses") from None


class Option(NamedTuple):
    default: Any
    check: Callable[[Any], Any]
    help: str


OPTIONS: dict[str, dict[str, Option]] = {
    "dns": {
        "listen": Option(["127.0.0.1:53", "[::1]:53"], _many(_listen, least=1),
            "addresses to answer on, UDP and TCP; an interface name means its addresses"),
        "allow_from": Option(["local"], _many(_source),
            '"local" (loopback, private, link-local and the lan interfaces\' own networks) or networks; others get no answer'),
        "upstream": Option(["system"], _many(_upstream, least=1),
            '"system" (the machine\'s resolvers) or addresses: "192.0.2.53", "tcp://192.0.2.53", '
            '"tls://192.0.2.54#resolver.example" (its certificate\'s name; without #: its address), each with optional :port'),
        "tls_ca": Option("", _path_or_none,
            "authorities (PEM) that certificates of tls:// upstreams must come from; empty: those that the system trusts"),
        "forward": Option({}, _forward, 'zones that go elsewhere: { "corp.example" = ["192.0.2.10"] }, reverse zones too'),
        "hosts": Option([], _many(_path), "hosts files with local records"),
        "workers": Option("auto", _workers,
            "resolver processes: auto (one for each processor, at most 4) or a number; 0: inside the main process"),
        "block_mode": Option("nxdomain", _block_mode,
            'answer to a blocked name: nxdomain, nodata, null, refused or ["address", …]'),
        "block_ttl": Option(10, _int(0, 86400), "seconds a client may keep a block"),
        "rebind": Option(False, _bool, "private addresses stay out of what the upstream answers, but for [dns] forward"),
        "ech": Option("keep", _choice("keep", "strip"),
            "keep, or strip: without keys for Encrypted Client Hello, so that a name stays visible on the way"),
    },
    "policy": {
        "apps": Option("default", _either("default", "all", check=_many(_text)),
            '"default" (the eight of Executive Order 13971), "all" or a list of app ids'),
        "functions": Option(["payment", "telemetry"], _either("all", check=_many(_choice(*FUNCTIONS))),
            f'which functions of those apps: {", ".join(FUNCTIONS)}; or "all" for the whole app'),
        "bypass": Option(list(BYPASS_FUNCTIONS), _many(_choice(*BYPASS_FUNCTIONS)),
            f"which ways round the filter are closed: {', '.join(BYPASS_FUNCTIONS)}"),
        "shared": Option(False, _either(True, False, check=_many(_text)),
            "also the entries that break others: true, false or a list of app ids"),
        "mode": Option("block", _choice("block", "audit"), "block, or audit: log what would be blocked and let it pass"),
    },
    "lists": {
        "apps": Option(["/usr/share/embargo/blocklists", "/etc/embargo/apps.d"], _many(_path, least=1),
            "directories of apps; an app in a later one replaces the one of the same id"),
        "allow": Option("/etc/embargo/allow.list", _path, "the administrator's exceptions, consulted first"),
        "block": Option("/etc/embargo/block.list", _path, "the administrator's additions"),
    },
    "firewall": {
        "enabled": Option(True, _bool, "block addresses with nftables"),
        "lan": Option([], _many(_interface), "interfaces of policed clients; empty: all forwarded traffic, no interception"),
        "except": Option([], _many(_network), "client addresses or networks never policed"),
        "intercept_dns": Option(True, _bool, "on lan interfaces, port 53 to any other resolver comes to us"),
        "learn": Option(True, _bool, "block the addresses behind blocked names too, where nobody else lives there"),
        "fail": Option("closed", _choice("closed", "open"),
            "policed clients' port 53 while no resolver answers: closed (rejected) or open (passed on unfiltered)"),
        "on_stop": Option("keep", _choice("keep", "remove"),
            "the rules when the agent stops: keep or remove; with fail = open, clients' port 53 is passed on either way"),
        "log_group": Option(8137, _int(0, 65535), "the NFLOG group of the drop log"),
        "ct_mark": Option(CT_MARK, _mask,
            "bits of the connection mark that note which flows were let through; 0: every packet is judged anew"),
        "protect": Option(True, _bool, "no other process may change or flush our table (Linux 6.9 or later)"),
    },
    "log": {
        "events": Option("/var/log/embargo/events.jsonl", _path, "the event log"),
        "names": Option("blocked", _choice("blocked", "all", "none"),
            "which queries are logged: blocked, all, or none (the blocked ones, without their names)"),
        "max_bytes": Option(64 << 20, _int(4096, 1 << 40), "size at which the event log is rotated"),
        "keep": Option(5, _int(1, 1000), "rotated event logs kept"),
    },
    "metrics": {
        "listen": Option("", _metrics, 'address:port where Prometheus finds /metrics; "": nowhere'),
    },
    "state": {
        "dir": Option("/var/lib/embargo", _path, "generations and local lists"),
        "runtime": Option("/run/embargo", _path, "the control socket"),
        "user": Option("embargo-dns", _text, "whom resolvers run as, or nobody; as a service, User= of embargo-resolver@ too"),
        "group": Option("embargo", _text,
            "the group that may use the control socket; the agent must be in it: SupplementaryGroups= in its unit"),
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of a text, wrong or not: each value that cannot be used has its default instead."""

    config: Config
    problems: tuple[Problem, ...]
    wrong: frozenset[str]  # sections with something wrong, and unknown ones
    written: frozenset[tuple[str, str]]  # keys whose values stand in the text, and can be used


def parse(data: bytes, file: str) -> Config:
    """The configuration. Raises ConfigError with every problem found."""
    reading = read(data, file)
    if reading.problems:
        raise ConfigError(reading.problems)
    return reading.config


def read(data: bytes, file: str) -> Reading:
    """What of a configuration can be used. Raises ConfigError when it is not TOML."""
    raw, text = toml.parse(data, file)
    wrong: list[Wrong] = [each for name, section in raw.items() for each in _unknown(name, section)]
    values: dict[str, dict[str, Any]] = {}
    for name, options in OPTIONS.items():
        section = raw.get(name, {})
        values[name] = _section(name, section if isinstance(section, dict) else {}, options, wrong)
    keys = {(name, key) for name, section in raw.items() if isinstance(section, dict) for key in section}
    return Reading(
        _build(file, text, values),
        _problems(file, text, wrong) if wrong else (),
        frozenset(str(path[0]) for path, _ in wrong),
        frozenset(keys - {path[:2] for path, _ in wrong}),
    )


def default(file: str = "") -> Config:
    """The configuration of an empty file."""
    return parse(b"", file)


Wrong = tuple[toml.Path, Refused]


def _problems(file: str, text: str, wrong: Iterable[Wrong]) -> tuple[Problem, ...]:
    """In the order of their lines."""
    lines = toml.Lines(text)
    found = (Problem(file, lines.at(*path), f"{_place(path)}: {what.message}", what.hint) for path, what in wrong)
    return tuple(sorted(found, key=lambda problem: problem.line))


def _place(path: toml.Path) -> str:
    """dns.upstream[1], dns.forward."corp.example"[0]"""
    words = [f"[{key}]" if isinstance(key, int) else f".{key if _BARE.fullmatch(key) else _quoted(key)}" for key in path]
    return "".join(words).removeprefix(".")


_BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key that TOML wants no quotes around


def _suggest(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"


def _unknown(name: str, section: Any) -> Iterator[Wrong]:
    if name not in OPTIONS:
        yield (name,), Refused("unknown section", _elsewhere(name) or _suggest(name, OPTIONS))
    elif not isinstance(section, dict):
        yield (name,), Refused("wrong type", f"it is a section, [{name}]")
    else:
        for key in section:
            if key not in OPTIONS[name]:
                near = difflib.get_close_matches(key, OPTIONS[name], 1)
                hint = _elsewhere(key) if not near else ""
                yield (name, key), Refused("unknown key", hint or _suggest(key, OPTIONS[name]))


def _elsewhere(key: str) -> str:
    """A key that stands in the wrong section, or in none."""
    sections = [name for name, options in OPTIONS.items() if key in options and name != key]
    return f"it belongs in [{sections[0]}]" if sections else ""


def _section(name: str, section: Mapping[str, Any], options: Mapping[str, Option], wrong: list[Wrong]) -> dict[str, Any]:
    """The values of a section, checked; defaults where there is none or a wrong one."""
    values: dict[str, Any] = {}
    for key, option in options.items():
        values[key] = option.check(option.default)
        try:
            if key in section:
                values[key] = option.check(section[key])
        except Refused as refused:
            wrong.append(((name, key), refused))
        except _Several as several:
            wrong += [((name, key, *below), refused) for below, refused in several.bad]
    return values


def _build(file: str, text: str, values: dict[str, dict[str, Any]]) -> Config:
    dns, policy, firewall = dict(values["dns"]), dict(values["policy"]), dict(values["firewall"])
    servers = dns.pop("upstream")
    mode = Action.BLOCK if policy.pop("mode") == "block" else Action.AUDIT
    return Config(
        file=file,
        dns=Dns(**dns, upstream=tuple(s for s in servers if s != "system"), upstream_system="system" in servers),
        policy=Selection(**policy, mode=mode),
        lists=Lists(**values["lists"]),
        firewall=Firewall(except_=firewall.pop("except"), **firewall),
        log=Log(**values["log"]),
        metrics=Metrics(**values["metrics"]),
        state=State(**values["state"]),
        text=text,
    )


def reference() -> str:
    """Every option with its default and help, as a configuration file in which all is commented out."""
    out = ["# Embargo's configuration. Every key is optional; what stands here are the defaults.", ""]
    for name, options in OPTIONS.items():
        out.append(f"[{name}]")
        for key, option in options.items():
            out += [f"# {option.help}", f"#{key} = {literal(option.default)}"]
        out.append("")
    return "\n".join(out)


def literal(value: Any) -> str:
    """A default as it is written in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, dict):
        return "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)
