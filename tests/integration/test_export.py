"""Exports in the real resolvers: each answers as the engine decides, for tangled policies and for the shipped catalogue."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

import embargo
from embargo import config, explain, names
from embargo.config import Config
from embargo.daemon.compile import compiler, sources
from embargo.export import effective, render
from embargo.export.effective import EffectivePolicy
from embargo.export.formats import FORMATS
from embargo.lists import policy
from embargo.lists.image import Image
from embargo.lists.policy import Action
from embargo.names import Name
from golden import exports as golden
from support import exports
from support.agent import Agent
from support.exports import Resolver
from support.upstream import Asked, Upstream

TOP = Path(embargo.__file__).parent.parent.parent
ADDRESSES = {"A": "192.0.2.80", "AAAA": "2001:db8:80::80"}
#: (format, how it is started, what it says when the policy is in force)
RESOLVERS = {
    "dnsmasq": ("dnsmasq", exports.dnsmasq, ""),
    "unbound": ("unbound", exports.unbound, ""),
    "bind": ("rpz", exports.bind, "rpz: rpz.embargo: reload done"),
    "unbound-rpz": ("rpz", exports.unbound_rpz, ""),
}
MODES = {"nxdomain": '"nxdomain"', "null": '"null"', "address": '["192.0.2.9", "2001:db8::9"]'}
SAMPLE = 600


def answer(asked: Asked) -> list[bytes]:
    """Every name has its address; `NUMBER.at.example` that of the catalogue's lists, `alias.…` is one for what follows."""
    made = dns.message.make_response(asked.message)
    question = asked.message.question[0]
    qtype = dns.rdatatype.to_text(question.rdtype)
    owner = question.name
    first, _, rest = owner.to_text().partition(".")
    if first == "alias":
        made.answer.append(dns.rrset.from_text(owner, 300, "IN", "CNAME", rest))
        owner = dns.name.from_text(rest)
    if qtype in ADDRESSES:
        address = LEADS.get(owner.to_text(), ADDRESSES)[qtype]
        made.answer.append(dns.rrset.from_text(owner, 300, "IN", qtype, address))
    return [made.to_wire()]


#: names that lead to listed addresses, and to their neighbours
LEADS = {
    "listed.test.": {"A": "203.0.113.3", "AAAA": "2001:db8:a::3"},
    "free.test.": {"A": "203.0.113.16", "AAAA": "2001:db8:b::3"},
    "forms.test.": {"A": "192.0.2.80", "AAAA": "64:ff9b::203.0.113.3"},
    "mapped.test.": {"A": "192.0.2.80", "AAAA": "::ffff:203.0.113.3"},
    "six.test.": {"A": "192.0.2.80", "AAAA": "2002:cb00:7103::1"},
    "listed.good.example.": {"A": "203.0.113.3", "AAAA": "2001:db8:a::3"},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    with Upstream(answer) as running:
        yield running.port


def passes(found: dns.message.Message, qtype: str = "A") -> bool:
    return any(ADDRESSES[qtype] in rrset.to_text() for rrset in found.answer)


def refused(found: dns.message.Message, *, exact_without_data: bool = False) -> bool:
    """NXDOMAIN; for a name without those below it, Unbound has no data."""
    code = found.rcode()
    return code == dns.rcode.NXDOMAIN or (exact_without_data and code == dns.rcode.NOERROR and not found.answer)


def unreachable(what: EffectivePolicy, asked: Name) -> bool:
    """Does Unbound's format leave this name open: below one that itself passes?"""
    above = next((r for r in reversed(what.names) if r.name in set(names.suffixes(asked)) and r.name != asked), None)
    exposed = {r.name for r in what.names if r.below.blocked and not r.itself.blocked}
    return above is not None and bool(exposed & set(names.suffixes(asked)) - {asked})


def differences(
    resolver: Resolver, what: EffectivePolicy, asked: list[Name], blocks: exports.Blocks, *, unbound: bool
) -> Iterator[str]:
    alone = {ruling.name for ruling in what.names if ruling.itself.blocked and not ruling.below.blocked}
    for name in asked:
        found = resolver.ask(name)
        if blocks(name):
            right = refused(found, exact_without_data=unbound and name in alone)
            right = right or (unbound and unreachable(what, name) and passes(found))
        else:
            right = passes(found)
        if not right:
            yield f"{names.to_text(name)}: {'blocked' if blocks(name) else 'passed'} by us, here {found}"


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("software", RESOLVERS)
def test_the_other_resolver_decides_as_the_engine_does(software: str, seed: int, tmp_path: Path, upstream: int) -> None:
    """A hundred small policies in which allow, block, exceptions and exact names lie above and below each other."""
    form, command, ready = RESOLVERS[software]
    files, local = exports.tangled(seed, 100)
    what, built, board = golden.of('[policy]\nfunctions = "all"\nshared = ["alipay"]\n' if seed == 2 else "", files, local)
    text = render.render(what, form, "1").text
    asked = exports.around(ruling.name for ruling in what.names)
    asked = random.Random(seed).sample(asked, min(SAMPLE, len(asked)))
    blocked = {name for name in asked if board.choose(built.lookup(name))[0] is Action.BLOCK}
    assert len(blocked) > SAMPLE // 10
    assert len(asked) - len(blocked) > SAMPLE // 10
    with exports.serving(command, tmp_path, text, upstream, ready) as resolver:
        wrong = list(differences(resolver, what, asked, blocked.__contains__, unbound=software == "unbound"))
        assert wrong == []


def catalogue(directory: Path, text: str) -> tuple[Config, Image, policy.Switchboard]:
    """The shipped lists under this configuration."""
    settings = config.parse(
        f"{text}\n[lists]\napps = [{json.dumps(str(TOP / 'blocklists'))}]\n"
        f"allow = {json.dumps(str(directory / 'allow.list'))}\nblock = {json.dumps(str(directory / 'block.list'))}\n"
        f"[state]\ndir = {json.dumps(str(directory))}\n".encode(),
        "embargo.toml",
    )
    loaded = sources.load(settings, compiler.guard([]))
    data, board = compiler.build(settings, loaded)
    return settings, Image(data), board


@pytest.mark.parametrize("software", RESOLVERS)
def test_the_other_resolver_blocks_the_shipped_catalogue(software: str, tmp_path: Path, upstream: int) -> None:
    form, command, ready = RESOLVERS[software]
    (tmp_path / "allow.list").write_text("mygw.alipay.com\n=www.qq.com\n")
    (tmp_path / "block.list").write_text("tracker.example\n=host.example\n")
    settings, built, board = catalogue(tmp_path, '[policy]\napps = "all"\nfunctions = "all"\n')
    what = effective.read(built, board, settings, explain.special(()))
    text = render.render(what, form, "1").text
    asked = exports.around(name for name, _, _ in built.listed())
    asked = [*random.Random(1).sample(asked, SAMPLE), *map(names.from_text, ("mygw.alipay.com", "x.mygw.alipay.com"))]

    def blocks(name: Name) -> bool:
        return bool(explain.verdict(built, board, names.to_text(name)).verdict == "blocked")

    assert sum(map(blocks, asked)) > SAMPLE // 4
    with exports.serving(command, tmp_path, text, upstream, ready) as resolver:
        assert list(differences(resolver, what, asked, blocks, unbound=software == "unbound")) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("software", RESOLVERS)
def test_the_other_resolver_answers_in_the_configured_block_mode(
    software: str, mode: str, tmp_path: Path, upstream: int
) -> None:
    form, command, ready = RESOLVERS[software]
    text = render.render(golden.made(f"[dns]\nblock_mode = {MODES[mode]}\n"), form, "1").text
    expected = {
        "nxdomain": {}, "null": {"A": "0.0.0.0", "AAAA": "::"}, "address": {"A": "192.0.2.9", "AAAA": "2001:db8::9"},
    }[mode]  # fmt: skip
    with exports.serving(command, tmp_path, text, upstream, ready) as resolver:
        for name in ("alipay.example", "www.alipay.example", "x.block.test", "xn--bcher-kva.test", "stats.mail.alipay.example"):
            for qtype in ("A", "AAAA", "HTTPS"):
                found = resolver.ask(name, qtype)
                rrsets = [rrset.to_text().split(" ", 4)[4] for rrset in found.answer]
                assert rrsets == ([expected[qtype]] if qtype in expected else []), (name, qtype, found)
                assert found.rcode() == (dns.rcode.NOERROR if expected else dns.rcode.NXDOMAIN), (name, qtype, found)
        no_host = ("sp\\032ace.alipay.test",) if form == "rpz" else ()  # BIND would refuse the zone
        for name in ("canary.test", "www.canary.test", *no_host):
            assert resolver.ask(name).rcode() == dns.rcode.NXDOMAIN
        for name in ("mail.alipay.example", "good.example", "self.block.test", "below.log.alipay.test", "alipay.test"):
            assert passes(resolver.ask(name)), name
            assert passes(resolver.ask(name, "AAAA"), "AAAA"), name


@pytest.mark.parametrize("software", ["dnsmasq", "bind", "unbound-rpz"])
def test_answers_with_a_listed_address_are_refused(software: str, tmp_path: Path, upstream: int) -> None:
    form, command, ready = RESOLVERS[software]
    text = render.render(golden.made(allow=("good.example",)), form, "1").text
    with exports.serving(command, tmp_path, text, upstream, ready) as resolver:
        for qtype in ("A", "AAAA"):
            assert resolver.ask("listed.test", qtype).rcode() == dns.rcode.NXDOMAIN
            assert resolver.ask("free.test", qtype).answer
        for name in ("forms.test", "six.test", *(("mapped.test",) if software != "unbound-rpz" else ())):
            assert resolver.ask(name).answer
            assert resolver.ask(name, "AAAA").rcode() == dns.rcode.NXDOMAIN, name
        if form == "rpz":
            assert resolver.ask("listed.good.example").answer, "an allowed name passes with what it leads to"


def test_a_response_policy_zone_judges_aliases_and_spares_those_of_allowed_names(tmp_path: Path, upstream: int) -> None:
    text = render.render(golden.made(allow=("alias.alipay.example",)), "rpz", "1").text
    with exports.serving(exports.bind, tmp_path, text, upstream, RESOLVERS["bind"][2]) as resolver:
        assert resolver.ask("alias.www.block.test").rcode() == dns.rcode.NXDOMAIN  # blocked by its own name
        assert resolver.ask("alias.free.test").answer
        assert passes(resolver.ask("alias.alipay.example"))


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    agent = Agent(tmp_path)
    agent.write_config()
    return agent


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_needs_no_agent_and_always_prints_the_same(agent: Agent, form: str) -> None:
    one, two = agent.cli("export", form), agent.cli("export", form)
    assert one.stdout == two.stdout
    assert f"embargo export {form}" in one.stdout.splitlines()[0]
    assert embargo.__version__ in one.stdout.splitlines()[0]


def test_entries_that_are_not_exported_are_reported_on_standard_error(agent: Agent) -> None:
    assert agent.cli("export", "rpz").stderr == ""
    lines = agent.cli("export", "domains").stderr.splitlines()
    assert any("allow list: mail.alipay.example" in line for line in lines)
    assert any("addresses and networks: 203.0.113.0/28" in line for line in lines)
    agent.write_config(policy={"mode": "audit"})
    done = agent.cli("export", "domains")
    assert "alipay.example" not in done.stdout
    assert 'policy.mode = "audit"' in done.stderr


def test_json_has_the_line_that_decides(agent: Agent) -> None:
    rows = agent.answer("export", "rpz")
    found = {row["entry"]: row for row in rows}
    assert found["alipay.example"] == {
        "entry": "alipay.example", "match": "suffix", "verdict": "block", "app": "alipay", "function": "payment",
        "list": "alipay/payment.list", "line": 1, "rule": "alipay.example",
    }  # fmt: skip
    assert found["mail.alipay.example"]["verdict"] == "pass"
    assert found["mail.alipay.example"]["app"] is None
    assert found["203.0.113.0/28"]["match"] == "network"
    assert {row["entry"] for row in agent.answer("export", "nft")} == {"203.0.113.0/28"}


def test_local_lists_and_the_selection_are_exported(agent: Agent) -> None:
    (agent.root / "allow.list").write_text("pay.alipay.example\n")
    (agent.root / "block.list").write_text("tracker.example\n")
    agent.write_config(policy={"functions": ["telemetry"]})
    lines = agent.cli("export", "dnsmasq").stdout.splitlines()
    assert {"server=/pay.alipay.example/#", "local=/tracker.example/", "local=/log.alipay.test/"} <= set(lines)
    assert "local=/alipay.example/" not in lines


def test_a_serial_may_be_given_and_a_format_must_be(agent: Agent) -> None:
    assert " hostmaster.localhost. 2026010100 " in agent.cli("export", "rpz", "--serial", "2026010100").stdout
    assert "rpz" in agent.cli("export", "bind", status=2).stderr
    agent.write_config(policy={"apps": ["nobody"]})
    assert agent.cli("export", "rpz", status=2).stdout == ""


def test_an_invalid_line_is_reported_and_the_others_are_exported(agent: Agent) -> None:
    agent.write_app("alipay", {"payment": ["alipay.example", "not a name", "pay.example"]})
    done = agent.cli("export", "dnsmasq")
    assert "embargo check" in done.stderr
    assert "local=/pay.example/" in done.stdout
