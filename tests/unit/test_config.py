"""The configuration: every key with its default, what it takes, and what is said of anything else."""

import re
from typing import Any

import pytest

from embargo import config
from embargo.config import Config, Listen
from embargo.dns.upstream import Server
from embargo.errors import ConfigError
from embargo.lists.policy import BYPASS_FUNCTIONS, Action

FUNCTIONS = "payment, telemetry, ads, login, core, messaging, cdn, update, push, httpdns, website"
BYPASS = "dot, doq, doh, httpdns, canary, relay"


def parse(text: str) -> Config:
    return config.parse(text.encode(), "e.toml")


def one(section: str, key: str, value: str) -> Any:
    """What a single key becomes."""
    found = parse(f"[{section}]\n{key} = {value}\n")
    return getattr(getattr(found, section), {"except": "except_"}.get(key, key))


def problem_texts(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.parse(text.encode() if isinstance(text, str) else text, "e.toml")
    return list(map(str, caught.value.problems))


NAME_HINT = "write it as in tls://192.0.2.54#resolver.example; without # the certificate must be for the address"

# ── defaults ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_file_gives_the_defaults() -> None:
    found = parse("")
    assert found.dns == config.Dns(
        listen=(Listen("127.0.0.1", 53), Listen("::1", 53)), allow_from=("local",), upstream=(), upstream_system=True,
        tls_ca="", forward=(), hosts=(), local=(), workers=None, block_mode="nxdomain", block_ttl=10,
        rebind=False, rebind_except=(), ech="keep",
    )  # fmt: skip
    assert (found.policy.apps, found.policy.functions) == ("default", ("payment", "telemetry"))
    assert (found.policy.bypass, found.policy.shared, found.policy.mode) == (BYPASS_FUNCTIONS, False, Action.BLOCK)
    assert found.lists == config.Lists(
        ("/usr/share/embargo/blocklists", "/etc/embargo/apps.d"), "/etc/embargo/allow.list", "/etc/embargo/block.list"
    )
    assert found.firewall == config.Firewall(True, (), (), True, True, "closed", "keep", 8137, 0xFF00_0000, True)
    assert (found.log.events, found.log.names) == ("/var/log/embargo/events.jsonl", "blocked")
    assert (found.state.dir, found.state.runtime, found.control) == (
        "/var/lib/embargo", "/run/embargo", "/run/embargo/control.sock",
    )  # fmt: skip
    assert config.default() == config.parse(b"", "")


def test_the_help_of_a_key_names_every_word_that_it_takes() -> None:
    chosen = 0
    for section, options in config.OPTIONS.items():
        for key, option in options.items():
            for value in ('"?"', '["?"]'):
                with pytest.raises(ConfigError) as caught:  # wrong for the one key, unknown to the other
                    parse(f"[{section}]\n{key} = {value}\nnone = 0\n")
                hints = [problem.hint for problem in caught.value.problems]
                for words in re.findall(
                    r"it must be one of ([^;]*?)(?:, or a list of addresses)?$", "\n".join(hints), re.MULTILINE
                ):
                    chosen += 1
                    assert {word for word in words.split(", ") if not re.search(rf"\b{word}\b", option.help)} == set(), key
    assert chosen >= 8


def test_the_reference_is_a_configuration_that_changes_nothing() -> None:
    assert config.parse(config.reference().encode(), "").dns == config.default().dns
    uncommented = "\n".join(line.removeprefix("#") for line in config.reference().splitlines() if not line.startswith("# "))
    assert config.parse(uncommented.encode(), "") == config.default()
    assert all(
        f"\n# {option.help}\n#{key} = " in config.reference() for o in config.OPTIONS.values() for key, option in o.items()
    )


def test_texts_that_mean_the_same_are_the_same_configuration() -> None:
    assert parse("[dns]\nblock_ttl = 10 # s\n") == parse("")
    assert parse("[dns]\nblock_ttl = 11\n") != parse("")
    assert parse("# x\n").text == "# x\n"


# ── what each key takes ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("section", "key", "value", "becomes"),
    [
        ("dns", "listen", '["192.0.2.1"]', (Listen("192.0.2.1", 53),)),
        ("dns", "listen", '["192.0.2.1:5353", "[2001:db8::1]:5353"]', (Listen("192.0.2.1", 5353), Listen("2001:db8::1", 5353))),
        ("dns", "listen", '["2001:db8::1", "[2001:DB8:0::2]"]', (Listen("2001:db8::1", 53), Listen("2001:db8::2", 53))),
        ("dns", "listen", '["abcd::1", "::"]', (Listen("abcd::1", 53), Listen("::", 53))),
        ("dns", "listen", '["lan0", "eth0.100:5353", "br-lan"]',
            (Listen("", 53, "lan0"), Listen("", 5353, "eth0.100"), Listen("", 53, "br-lan"))),
        ("dns", "listen", '["fe80::1%eth0"]', (Listen("fe80::1%eth0", 53),)),
        ("dns", "allow_from", "[]", ()),
        ("dns", "allow_from", '["local", "192.0.2.0/24", "2001:db8::/32", "192.0.2.7"]',
            ("local", "192.0.2.0/24", "2001:db8::/32", "192.0.2.7/32")),
        ("dns", "upstream", '["192.0.2.53", "tcp://192.0.2.54:5353", "udp://[2001:db8::53]"]',
            (Server("192.0.2.53", 53), Server("192.0.2.54", 5353, "tcp"), Server("2001:db8::53", 53))),
        ("dns", "upstream", '["tls://192.0.2.54#Resolver.Example.", "tls://[2001:db8::53]:8853#a-b.c_d.example", "tls://192.0.2.9"]',
            (Server("192.0.2.54", 853, "tls", "resolver.example"), Server("2001:db8::53", 8853, "tls", "a-b.c_d.example"),
             Server("192.0.2.9", 853, "tls"))),
        ("dns", "upstream", '["tls://192.0.2.54#bücher.example"]',
            (Server("192.0.2.54", 853, "tls", "xn--bcher-kva.example"),)),
        ("dns", "tls_ca", '"/etc/embargo/ca.pem"', "/etc/embargo/ca.pem"),
        ("dns", "tls_ca", '""', ""),
        ("dns", "upstream", '["system", "192.0.2.53"]', (Server("192.0.2.53", 53),)),
        ("dns", "forward", '{ "a.example" = ["192.0.2.9:5353", "tcp://192.0.2.8"], "2.0.192.in-addr.arpa" = ["192.0.2.7"] }',
            (("a.example", (Server("192.0.2.9", 5353), Server("192.0.2.8", 53, "tcp"))),
             ("2.0.192.in-addr.arpa", (Server("192.0.2.7", 53),)))),
        ("dns", "hosts", '["/etc/hosts"]', ("/etc/hosts",)),
        ("dns", "local", '["lan", ".", "Büro.internal.", "2.0.192.in-addr.arpa"]',
            ("lan", ".", "xn--bro-hoa.internal", "2.0.192.in-addr.arpa")),
        ("dns", "workers", '"auto"', None),
        ("dns", "workers", "0", 0),
        ("dns", "workers", "64", 64),
        ("dns", "block_mode", '"nodata"', "nodata"),
        ("dns", "block_mode", '"null"', "null"),
        ("dns", "block_mode", '"refused"', "refused"),
        ("dns", "block_mode", '["192.0.2.1", "2001:db8::1"]', ("192.0.2.1", "2001:db8::1")),
        ("dns", "block_ttl", "0", 0),
        ("dns", "block_ttl", "86400", 86400),
        ("dns", "rebind", "true", True),
        ("dns", "rebind_except", '["dnsbl.example", "plex"]', ("dnsbl.example", "plex")),
        ("dns", "ech", '"strip"', "strip"),
        ("policy", "apps", '"all"', "all"),
        ("policy", "apps", '["alipay", "qq"]', ("alipay", "qq")),
        ("policy", "apps", "[]", ()),
        ("policy", "functions", '"all"', "all"),
        ("policy", "functions", '["core", "website"]', ("core", "website")),
        ("policy", "functions", "[]", ()),
        ("policy", "bypass", '["doh"]', ("doh",)),
        ("policy", "bypass", "[]", ()),
        ("policy", "shared", "true", True),
        ("policy", "shared", '["qq"]', ("qq",)),
        ("policy", "mode", '"audit"', Action.AUDIT),
        ("lists", "apps", '["/srv/lists"]', ("/srv/lists",)),
        ("lists", "allow", '"/srv/allow"', "/srv/allow"),
        ("lists", "block", '"/srv/block"', "/srv/block"),
        ("firewall", "enabled", "false", False),
        ("firewall", "lan", '["lan0", "wlan0"]', ("lan0", "wlan0")),
        ("firewall", "except", '["192.0.2.7", "2001:db8::/64"]', ("192.0.2.7/32", "2001:db8::/64")),
        ("firewall", "intercept_dns", "false", False),
        ("firewall", "learn", "false", False),
        ("firewall", "fail", '"open"', "open"),
        ("firewall", "on_stop", '"remove"', "remove"),
        ("firewall", "log_group", "0", 0),
        ("firewall", "log_group", "65535", 65535),
        ("firewall", "ct_mark", "0", 0),
        ("firewall", "ct_mark", "0xff0000", 0xFF0000),
        ("firewall", "ct_mark", "0xffffffff", 0xFFFFFFFF),
        ("firewall", "protect", "false", False),
        ("log", "events", '"/tmp/e"', "/tmp/e"),
        ("log", "names", '"none"', "none"),
        ("log", "names", '"all"', "all"),
        ("log", "max_bytes", "4096", 4096),
        ("log", "keep", "1", 1),
        ("metrics", "listen", '""', None),
        ("metrics", "listen", '"[::1]:9153"', Listen("::1", 9153)),
        ("metrics", "listen", '"127.0.0.1:9153"', Listen("127.0.0.1", 9153)),
        ("state", "dir", '"/srv"', "/srv"),
        ("state", "runtime", '"/srv"', "/srv"),
        ("state", "user", '"nobody"', "nobody"),
        ("state", "group", '"adm"', "adm"),
    ],
)  # fmt: skip
def test_a_valid_value_is_accepted(section: str, key: str, value: str, becomes: object) -> None:
    assert one(section, key, value) == becomes


def test_the_table_of_valid_values_has_every_key() -> None:
    (mark,) = test_a_valid_value_is_accepted.pytestmark  # type: ignore[attr-defined] # the decorator puts it there
    assert {row[:2] for row in mark.args[1]} == {(section, key) for section, keys in config.OPTIONS.items() for key in keys}


def test_system_may_stand_among_other_upstreams() -> None:
    assert parse('[dns]\nupstream = ["192.0.2.53", "system"]').dns.upstream_system
    assert not parse('[dns]\nupstream = ["192.0.2.53"]').dns.upstream_system


# ── and what it does not ─────────────────────────────────────────────────────────────────────────────────────────────────

WILDCARD = "a name already covers every name below it; write it without '*.'"
LIST = 'it must be a list, as in ["…"]'
ADDRESS = "write it as in 192.0.2.53 or 2001:db8::53"
NETWORK = "write it as in 192.0.2.0/24 or 2001:db8::/32"
PORT = "a port is a number from 1 to 65535"
INTERFACE = "see `ip link`; a name has at most 15 octets and no wildcard"
BOOL = "it must be true or false"


@pytest.mark.parametrize(
    ("section", "key", "value", "what", "right"),
    [
        ("dns", "listen", '"127.0.0.1:53"', "wrong type", LIST),
        ("dns", "listen", "[]", "is empty", "name at least one"),
        ("dns", "listen[0]", "[53]", "wrong type", 'write "address:port" or an interface name'),
        ("dns", "listen[0]", '["9.9.9"]', '"9.9.9" is not an IP address', ADDRESS),
        ("dns", "listen[0]", '[""]', '"" is not an IP address', ADDRESS),
        ("dns", "listen[0]", '["127.0.0.1:99999"]', '"99999" is not a port', PORT),
        ("dns", "listen[0]", '["127.0.0.1:0"]', '"0" is not a port', PORT),
        ("dns", "listen[0]", '["127.0.0.1:"]', '"" is not a port', PORT),
        ("dns", "listen[0]", '["127.0.0.1:5²"]', '"5²" is not a port', PORT),
        ("dns", "listen[0]", '["lan0:0"]', '"0" is not a port', PORT),
        ("dns", "listen[0]", '["lan0:65536"]', '"65536" is not a port', PORT),
        ("dns", "listen[0]", '["lan0:dns"]', '"dns" is not a port', PORT),
        ("dns", "listen[0]", '["[::1:53"]', '"[::1:53" is not an address', "write it as in [2001:db8::53]:53"),
        ("dns", "listen[0]", '["[::1]53"]', '"[::1]53" is not an address', "write it as in [2001:db8::53]:53"),
        ("dns", "listen[0]", '["a name of an interface"]', '"a name of an interface" is not an interface name', INTERFACE),
        ("dns", "allow_from", '"local"', "wrong type", LIST),
        ("dns", "allow_from[0]", "[5]", "wrong type", f'{NETWORK}, or "local"'),
        ("dns", "allow_from[0]", '["lan"]', '"lan" is not a network', f'{NETWORK}, or "local"'),
        ("dns", "allow_from[0]", '["192.0.2.1/24"]', '"192.0.2.1/24" has host bits set',
            'write "192.0.2.0/24" or "192.0.2.1", or "local"'),
        ("dns", "upstream", '"system"', "wrong type", LIST),
        ("dns", "upstream", "[]", "is empty", "name at least one"),
        ("dns", "upstream[0]", "[true]", "wrong type", 'write an address such as "192.0.2.53"'),
        ("dns", "upstream[0]", '["9.9.9"]', '"9.9.9" is not an IP address', ADDRESS),
        ("dns", "upstream[0]", '["dns.example"]', '"dns.example" is not an IP address', ADDRESS),
        ("dns", "upstream[0]", '["192.0.2.53:dns"]', '"dns" is not a port', PORT),
        ("dns", "upstream[0]", '["https://192.0.2.53/dns-query"]', '"https://192.0.2.53/dns-query" has an unknown scheme',
            "write an address alone, tcp://address or tls://address#name"),
        ("dns", "upstream[0]", '["192.0.2.54#resolver.example"]',
            '"192.0.2.54#resolver.example" names a certificate, which only TLS has',
            'write "tls://192.0.2.54#resolver.example"'),
        ("dns", "upstream[0]", '["tls://192.0.2.54#"]', '"" is not a name that a certificate can have', NAME_HINT),
        ("dns", "upstream[0]", '["tls://192.0.2.54#192.0.2.55"]',
            '"192.0.2.55" is not a name that a certificate can have', NAME_HINT),
        ("dns", "upstream[0]", '["tls://192.0.2.54#2001:db8::1"]',
            '"2001:db8::1" is not a name that a certificate can have', NAME_HINT),
        ("dns", "upstream[0]", '["tls://192.0.2.54#*.example"]',
            '"*.example" is not a name that a certificate can have', NAME_HINT),
        ("dns", "upstream[0]", '["tls://resolver.example"]', '"resolver.example" is not an IP address',
            "write it as in 192.0.2.53 or 2001:db8::53"),
        ("dns", "tls_ca", '"ca.pem"', '"ca.pem" is not an absolute path', "start it with /"),
        ("dns", "forward", '["192.0.2.10"]', "wrong type", 'write { "corp.example" = ["192.0.2.10"] }'),
        ("dns", "hosts", '"/etc/hosts"', "wrong type", LIST),
        ("dns", "hosts[0]", '["hosts"]', '"hosts" is not an absolute path', "start it with /"),
        ("dns", "local[0]", '["*.lan"]', '"*.lan" has a wildcard', WILDCARD),
        ("dns", "local[0]", '["10.0.0.0/8"]', '"10.0.0.0/8" is an address or network',
            'write its reverse zone, "10.in-addr.arpa"'),
        ("dns", "rebind_except[0]", '["."]', '"." is the root of all names', "write the name that is meant"),
        ("dns", "rebind_except[0]", '["/plex/"]', '"/plex/" is not a name, address or network',
            "write the name alone, without a path"),
        ("dns", "listen[0]", '["localhost:5300"]', '"localhost:5300" is a host name',
            'write "127.0.0.1:5300" and "[::1]:5300"'),
        ("dns", "listen[0]", '["fe80::1"]', '"fe80::1" is a link-local address, which each interface may have',
            'name its interface, as in "[fe80::1%lan0]:53"'),
        ("dns", "workers", '"four"', "wrong type", 'it must be a number from 0 to 64, or "auto"'),
        ("dns", "workers", "-1", "-1 is out of range", 'it must be a number from 0 to 64, or "auto"'),
        ("dns", "workers", "65", "65 is out of range", 'it must be a number from 0 to 64, or "auto"'),
        ("dns", "workers", "true", "wrong type", 'it must be a number from 0 to 64, or "auto"'),
        ("dns", "workers", "1.0", "wrong type", 'it must be a number from 0 to 64, or "auto"'),
        ("dns", "block_mode", '"nxdomian"', '"nxdomian" is not allowed',
            'did you mean "nxdomain"? it must be one of nxdomain, nodata, null, refused, or a list of addresses'),
        ("dns", "block_mode", '"0.0.0.0"', '"0.0.0.0" is not allowed',
            "it must be one of nxdomain, nodata, null, refused, or a list of addresses"),
        ("dns", "block_mode", "5", "wrong type", "it must be one of nxdomain, nodata, null, refused, or a list of addresses"),
        ("dns", "block_mode", "[]", "is empty", "name at least one"),
        ("dns", "block_mode[0]", '["192.0.2.1:80"]', '"192.0.2.1:80" is not an IP address', ADDRESS),
        ("dns", "block_ttl", '"10"', "wrong type", "it must be a number from 0 to 86400"),
        ("dns", "rebind", "1", "wrong type", "it must be true or false"),
        ("dns", "ech", '"on"', '"on" is not allowed', "it must be one of keep, strip"),
        ("dns", "block_ttl", "86401", "86401 is out of range", "it must be a number from 0 to 86400"),
        ("policy", "apps", '"alipay"', '"alipay" is not allowed', 'it must be "default", "all" or a list'),
        ("policy", "apps", "true", "wrong type", 'it must be "default", "all" or a list'),
        ("policy", "apps[0]", '[""]', "is empty", "write a name"),
        ("policy", "functions", '"payment"', '"payment" is not allowed', 'it must be "all" or a list'),
        ("policy", "functions[0]", '["payments"]', '"payments" is not allowed',
            f'did you mean "payment"? it must be one of {FUNCTIONS}'),
        ("policy", "functions[0]", "[1]", "wrong type", f"it must be one of {FUNCTIONS}"),
        ("policy", "bypass", '"all"', "wrong type", LIST),
        ("policy", "bypass[0]", '["dns"]', '"dns" is not allowed', f'did you mean "httpdns"? it must be one of {BYPASS}'),
        ("policy", "shared", '"yes"', '"yes" is not allowed', "it must be true, false or a list"),
        ("policy", "shared", "1", "wrong type", "it must be true, false or a list"),
        ("policy", "mode", '"log"', '"log" is not allowed', "it must be one of block, audit"),
        ("lists", "apps", '"/srv"', "wrong type", LIST),
        ("lists", "apps", "[]", "is empty", "name at least one"),
        ("lists", "allow", '"allow.list"', '"allow.list" is not an absolute path', "start it with /"),
        ("lists", "block", "[]", "wrong type", "it must be a string, an absolute path"),
        ("firewall", "enabled", '"yes"', "wrong type", BOOL),
        ("firewall", "enabled", "1", "wrong type", BOOL),
        ("firewall", "lan", '"lan0"', "wrong type", LIST),
        ("firewall", "lan[0]", "[0]", "wrong type", "it must be a string, an interface name"),
        ("firewall", "lan[0]", '["lan*"]', '"lan*" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", '["a b"]', '"a b" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", '["eth0:1"]', '"eth0:1" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", "['a\"b']", '"a"b" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", '[""]', '"" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", '["sixteen-octets-x"]', '"sixteen-octets-x" is not an interface name', INTERFACE),
        ("firewall", "lan[0]", '["äääääääää"]', '"äääääääää" is not an interface name', INTERFACE),
        ("firewall", "except[0]", '["192.0.2"]', '"192.0.2" is not a network', NETWORK),
        ("firewall", "except[0]", '["fe80::1%eth0"]', '"fe80::1%eth0" is not a network', NETWORK),
        ("firewall", "except[0]", '["2001:db8::1/64"]', '"2001:db8::1/64" has host bits set',
            'write "2001:db8::/64" or "2001:db8::1"'),
        ("firewall", "intercept_dns", '"on"', "wrong type", BOOL),
        ("firewall", "learn", "0", "wrong type", BOOL),
        ("firewall", "fail", '"close"', '"close" is not allowed', 'did you mean "closed"? it must be one of closed, open'),
        ("firewall", "on_stop", "true", "wrong type", "it must be one of keep, remove"),
        ("firewall", "log_group", "65536", "65536 is out of range", "it must be a number from 0 to 65535"),
        ("firewall", "ct_mark", "0x100000000", "4294967296 is out of range", "it must be a number from 0 to 4294967295"),
        ("firewall", "ct_mark", "0xf00f", "0x0000f00f is not four or more adjacent bits", "write it as in 0xff000000, or 0"),
        ("firewall", "ct_mark", "7", "0x00000007 is not four or more adjacent bits", "write it as in 0xff000000, or 0"),
        ("firewall", "protect", "1", "wrong type", "it must be true or false"),
        ("log", "events", '"events.jsonl"', '"events.jsonl" is not an absolute path', "start it with /"),
        ("log", "names", '"yes"', '"yes" is not allowed', "it must be one of blocked, all, none"),
        ("log", "max_bytes", "4095", "4095 is out of range", "it must be a number from 4096 to 1099511627776"),
        ("log", "keep", "0", "0 is out of range", "it must be a number from 1 to 1000"),
        ("metrics", "listen", '"lan0:9153"', '"lan0:9153" is not an address with a port', 'write it as in "127.0.0.1:9153"'),
        ("metrics", "listen", '"::1"', '"::1" is not an address with a port', 'write it as in "127.0.0.1:9153"'),
        ("metrics", "listen", "9153", "wrong type", 'write it as in "127.0.0.1:9153"'),
        ("state", "dir", '"../x"', '"../x" is not an absolute path', "start it with /"),
        ("state", "runtime", '"/a\\u0000b"', '"/a\N{REPLACEMENT CHARACTER}b" is not an absolute path', "start it with /"),
        ("state", "user", "1000", "wrong type", "it must be a string"),
        ("state", "group", '""', "is empty", "write a name"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_reported_with_key_line_and_hint(section: str, key: str, value: str, what: str, right: str) -> None:
    name = key.removesuffix("[0]")
    assert problem_texts(f"# a comment\n[{section}]\n\n{name} = {value}\n") == [f"e.toml:4: {section}.{key}: {what}, {right}"]


def test_the_table_of_invalid_values_has_every_key() -> None:
    (mark,) = test_an_invalid_value_is_reported_with_key_line_and_hint.pytestmark  # type: ignore[attr-defined] # the decorator puts it there
    rows = {(section, key.removesuffix("[0]")) for section, key, *_ in mark.args[1]}
    assert rows == {(section, key) for section, keys in config.OPTIONS.items() for key in keys}


def test_each_invalid_member_of_a_list_is_reported_with_its_line() -> None:
    assert problem_texts('[dns]\nupstream = [\n  "192.0.2.53",\n  "9.9.9", # quad\n  "192.0.2.54:x",\n]\n') == [
        f'e.toml:4: dns.upstream[1]: "9.9.9" is not an IP address, {ADDRESS}',
        f'e.toml:5: dns.upstream[2]: "x" is not a port, {PORT}',
    ]


def test_each_invalid_zone_and_server_of_forward_is_reported() -> None:
    text = """\
[dns.forward]
"a..b" = ["192.0.2.10"]
"corp.example" = [
  "192.0.2.10",
  "nobody",
]
empty = []
single = "192.0.2.10"
"." = ["192.0.2.10"]
"""
    assert problem_texts(text) == [
        'e.toml:2: dns.forward."a..b": is not a domain name, '
        "it has an empty label: one dot stands between two labels, none before the first",
        f'e.toml:5: dns.forward."corp.example"[1]: "nobody" is not an IP address, {ADDRESS}',
        "e.toml:7: dns.forward.empty: is empty, name at least one",
        f"e.toml:8: dns.forward.single: wrong type, {LIST}",
        'e.toml:9: dns.forward.".": the root zone cannot be forwarded, set dns.upstream instead',
    ]


def test_the_same_zone_in_two_spellings_is_reported() -> None:
    text = '[dns]\nforward = { "corp.example" = ["192.0.2.10"], "Corp.Example." = ["192.0.2.11"] }\n'
    assert problem_texts(text) == [
        'e.toml:2: dns.forward: "corp.example" and "Corp.Example." are the same zone, write it once, with all its servers'
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[dns]\nlistten = []\n", 'e.toml:2: dns.listten: unknown key, did you mean "listen"?'),
        ("[dns]\nupstreams = []\n", 'e.toml:2: dns.upstreams: unknown key, did you mean "upstream"?'),
        ("[log]\nzzz = 1\n", "e.toml:2: log.zzz: unknown key, known keys are events, names, max_bytes, keep"),
        ("[dns]\nenabled = true\n", "e.toml:2: dns.enabled: unknown key, it belongs in [firewall]"),
        ("[policy]\n\"a\\u001bb\" = 1\n",
            'e.toml:2: policy."a\N{REPLACEMENT CHARACTER}b": unknown key, '
            "known keys are apps, functions, bypass, shared, mode"),
        ("[dsn]\nlisten = []\n", 'e.toml:1: dsn: unknown section, did you mean "dns"?'),
        ("[verify]\n",
            "e.toml:1: verify: unknown section, known sections are dns, policy, lists, firewall, log, metrics, state"),
        ("listen = []\n", "e.toml:1: listen: unknown section, it belongs in [dns]"),
        ("\ndns = 5\n", "e.toml:2: dns: wrong type, it is a section, [dns]"),
        ("[[dns]]\nlisten = []\n", "e.toml:1: dns: wrong type, it is a section, [dns]"),
        ("dns.block_ttl = -1\n", "e.toml:1: dns.block_ttl: -1 is out of range, it must be a number from 0 to 86400"),
        ("dns = { block_ttl = -1 }\n", "e.toml:1: dns.block_ttl: -1 is out of range, it must be a number from 0 to 86400"),
    ],
)  # fmt: skip
def test_an_unknown_key_or_section_is_reported_with_a_suggestion(text: str, said: str) -> None:
    assert problem_texts(text) == [said]


def test_all_problems_are_reported_at_once_in_the_order_of_their_lines() -> None:
    dns = '[dns]\nblock_ttl = "x"\nlistten = 1\nlisten = ["a b", "127.0.0.1", 7]\n'
    text = f'[state]\ndir = 5\n{dns}[zzz]\n[firewall]\nlan = "lan0"\n'
    assert [problem.partition(": ")[0] + " " + problem.split(": ")[1] for problem in problem_texts(text)] == [
        "e.toml:2 state.dir", "e.toml:4 dns.block_ttl", "e.toml:5 dns.listten", "e.toml:6 dns.listen[0]",
        "e.toml:6 dns.listen[2]", "e.toml:7 zzz", "e.toml:9 firewall.lan",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[dns]\nlisten = [\n", "e.toml:2: not valid TOML: invalid value, "),
        (b"[dns]\nblock_mode = nodata\n", "e.toml:2: not valid TOML: invalid value, "),
        (b"[dns]\n[dns]\n", "e.toml:2: not valid TOML: cannot declare ('dns',) twice, "),
        (b"[dns]\n\n# \xe9\n", "e.toml:3: not UTF-8, save the file as UTF-8"),
        ("[dns]\n".encode("utf-16"), "e.toml:1: not UTF-8, save the file as UTF-8"),
        (b"x = " + b"[" * 5000, "e.toml: brackets are nested too deeply, "),
    ],
    ids=["open", "bare", "twice", "latin-1", "utf-16", "deep"],
)
def test_invalid_toml_is_reported_with_its_line(data: bytes, said: str) -> None:
    (problem,) = problem_texts(data)
    assert problem.startswith(said)


def test_a_byte_order_mark_and_crlf_are_ignored() -> None:
    assert config.parse(b"\xef\xbb\xbf[dns]\r\nblock_ttl = 5\r\n", "e.toml").dns.block_ttl == 5


def test_a_configuration_has_the_lines_of_its_keys() -> None:
    found = parse('[policy]\napps = [\n"alipay",\n"nobody"]\n')
    assert (found.line("policy", "apps", 1), found.line("policy", "shared"), found.line("dns")) == (4, 1, 0)
