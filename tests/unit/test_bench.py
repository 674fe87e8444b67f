"""The benchmark's generators, its readings of dnsperf and /proc, and its page."""

import ipaddress
import itertools
import re
from pathlib import Path

import pytest
from dnslib import DNSRecord  # type: ignore[import-untyped] # ships no types

from embargo.lists import lists
from embargo.lists.image import Image
from embargo.lists.policy import EntryKind, Level, Source
from tools.bench import data, fairness, firewall, floods, measure, report, rounds, scripted
from tools.bench.__main__ import options, plan
from tools.bench.rounds import Measure, Plan, Results
from tools.bench.servers import SERVERS
from tools.bench.servers.base import BenchError, Server
from tools.bench.servers.embargo import Embargo

COUNT = 2_000
IN_LIST = {  # where the name stands in a line of each server's list
    "Embargo": r"(\S+)",
    "Embargo, pure": r"(\S+)",
    "Unbound": r' local-zone: "(\S+)" always_nxdomain',
    "dnsmasq": r"address=/(\S+)/",
    "dnsdist": r"(\S+)",
    "PowerDNS": r"(\S+) CNAME \.\n\*\.\1 CNAME \.",
    "BIND": r"(\S+) CNAME \.\n\*\.\1 CNAME \.",
}

PLAIN = """\
DNS Performance Testing Tool
Version 2.10.0

[Status] Command line: dnsperf -s 127.0.0.1 -p 5300 -d q -l 0.5 -Q 20 -v -t 1
[Status] Testing complete (time limit)

Statistics:

  Queries sent:         14
  Queries completed:    12 (85.71%)
  Queries lost:         2 (14.29%)

  Response codes:       NOERROR 5 (41.67%), SERVFAIL 1 (8.33%), NXDOMAIN 6 (50.00%)
  Average packet size:  request 26, response 34
  Run time (s):         0.500260
  Queries per second:   23.987

  Average Latency (s):  0.000139 (min 0.000112, max 0.000166)
  Latency StdDev (s):   0.000017
"""
VERBOSE = (
    """\
> NXDOMAIN www.a.test A 0.000166
> NOERROR b.test A 0.000138
> T www.a.test A
> SERVFAIL b.test A 0.001500
"""
    + PLAIN
)
SILENT = PLAIN.replace("NOERROR 5 (41.67%), SERVFAIL 1 (8.33%), NXDOMAIN 6 (50.00%)", "")


def said(**rcodes: int) -> measure.Said:
    return measure.Said(rcodes, 0, 1.0, ())


# ── names and queries ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_names_are_the_same_in_every_run() -> None:
    assert data.blocked(COUNT) == data.blocked(COUNT)
    assert data.blocked(COUNT) != data.blocked(COUNT, seed=54)
    assert data.blocked(3) == ["www.rotipata0.cn", "gupofo1.com", "t.cdn.zazezita2.com"]


def test_a_shorter_list_is_the_beginning_of_a_longer_one() -> None:
    assert data.blocked(100) == data.blocked(COUNT)[:100]


def test_no_name_is_listed_twice_or_below_another() -> None:
    names = data.blocked(COUNT)
    listed = set(names)
    assert len(listed) == COUNT
    for name in [*names, *data.allowed()]:
        labels = name.split(".")
        assert not any(".".join(labels[start:]) in listed for start in range(1, len(labels)))


def test_allowed_names_are_not_listed() -> None:
    assert not set(data.blocked(COUNT)) & set(data.allowed())


@pytest.mark.parametrize("kind", data.KINDS)
def test_queries_are_the_same_in_every_run(kind: str) -> None:
    names = data.blocked(COUNT)
    assert list(data.queries(kind, names, 500)) == list(data.queries(kind, names, 500))


@pytest.mark.parametrize("kind", data.KINDS)
def test_the_blocked_part_of_the_queries_is_as_said(kind: str) -> None:
    names = data.blocked(COUNT)
    asked = [line.removesuffix(" A\n") for line in data.queries(kind, names, 4_000)]
    bad = [name for name in asked if any(end in names for end in _ends(name))]
    assert abs(len(bad) / len(asked) - data.BLOCKED_SHARE[kind]) < rounds.SLACK


def _ends(name: str) -> list[str]:
    labels = name.split(".")
    return [".".join(labels[start:]) for start in range(len(labels))]


def test_a_miss_is_asked_once() -> None:
    asked = list(data.queries("miss", data.blocked(COUNT), 5_000))
    assert len(set(asked)) == len(asked)


def test_what_is_asked_again_fits_the_caches_and_scattered_queries_do_not() -> None:
    names = data.blocked(10 * data.ASKED)
    few, many = (len(set(data.queries(kind, names, 30_000))) for kind in ("blocked", "scattered"))
    assert few <= 3 * data.ASKED < many


def test_query_files_hold_whole_lines(tmp_path: Path) -> None:
    files = data.write(tmp_path, data.blocked(COUNT), misses=50)
    assert set(files) == {*data.KINDS, "warm"}
    assert len(files["miss"].read_text().splitlines()) == 50
    assert [line.split()[0] for line in files["warm"].read_text().splitlines()] == data.allowed()


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", SERVERS, ids=lambda make: make.name)
def test_every_server_gets_the_same_names(make: type[Server]) -> None:
    names = data.blocked(COUNT)
    found = [re.fullmatch(IN_LIST[make.name], line.removesuffix("\n")) for line in make.list_lines(names)]
    assert [match and match[1] for match in found] == names


@pytest.mark.parametrize("make", SERVERS, ids=lambda make: make.name)
def test_the_list_is_written_where_the_server_looks(make: type[Server], tmp_path: Path) -> None:
    server = make(tmp_path)
    server.prepare(data.blocked(10))
    written = {str(path): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    [listed] = [path for path, text in written.items() if "".join(make.list_lines(data.blocked(10))) in text]
    assert any(str(tmp_path) in word for word in server.command())
    place = str(Path(listed).parent.parent) if issubclass(make, Embargo) else listed  # ours is told where apps are
    assert any(place in text for text in written.values())


def test_our_parser_takes_every_line_of_our_list() -> None:
    text = "".join(Embargo.list_lines(data.blocked(COUNT)))
    source = Source("listed/payment.list", Level.APPS, "listed", "payment", shared=False)
    parsed = lists.parse(text.encode(), file="payment.list", source=source, guard=lists.Guard())
    assert not parsed.problems
    assert [entry.kind for entry in parsed.entries] == [EntryKind.SUFFIX] * COUNT


def test_our_log_is_added_up_over_its_files(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "events.jsonl.1").write_text(
        '{"event":"start"}\n{"event":"dns","count":1}\n{"event":"dns","count":40}\n'
    )
    (tmp_path / "events" / "events.jsonl").write_text('{"event":"dns","count":2,"lost":7}\n{"event":"stop","lost":1}\n')
    assert Embargo(tmp_path).remark() == "Embargo logged 43 blocked queries in 3 records, and 8 only as a number of lost ones"


def test_servers_have_names_and_ports_of_their_own() -> None:
    assert len({make.name for make in SERVERS}) == len({make.port for make in SERVERS}) == len(SERVERS)


# ── readings ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dnsperf_is_read() -> None:
    found = measure.parse(PLAIN)
    assert found == measure.Said({"NOERROR": 5, "SERVFAIL": 1, "NXDOMAIN": 6}, 2, 0.50026, ())
    assert (found.answered, found.failed) == (11, 3)


def test_dnsperfs_latencies_are_read_and_time_outs_have_none() -> None:
    assert measure.parse(VERBOSE).latencies == (0.000138, 0.000166, 0.0015)


def test_a_silent_server_has_no_answers() -> None:
    found = measure.parse(SILENT)
    assert (found.rcodes, found.answered, found.failed) == ({}, 0, 2)


@pytest.mark.parametrize("label", ["Response codes", "Queries lost", "Run time"])
def test_an_output_without_its_figures_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="not what dnsperf prints"):
        measure.parse(PLAIN.replace(label, "Something else"))


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, 1.0), (0.25, 1.0), (0.26, 2.0), (0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)]
)
def test_quantiles_are_values_that_were_measured(part: float, expected: float) -> None:
    assert measure.quantile([1.0, 2.0, 3.0, 4.0], part) == expected


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        measure.quantile([], 0.5)


def test_processor_time_is_that_of_the_process_and_its_ended_children() -> None:
    stat = "77 (a) R 1 (b) S 1 77 77 0 -1 4194560 900 0 0 0 300 40 5 6 20 0 1 0 12345 9000000 800 18446744073709551615"
    assert measure.ticks(stat) == 300 + 40 + 5 + 6


def test_memory_is_the_proportional_set_size() -> None:
    rollup = "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  9000 kB\nPss:  4321 kB\nPss_Dirty:  1000 kB\nPss_Anon:  900 kB\n"
    assert measure.pss(rollup) == 4321 * 1024
    assert measure.pss("") == 0


def test_idle_processors_are_not_busy() -> None:
    assert measure.busy("cpu  100 20 30 99999 8888 4 5 6 70 80\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == 100 + 20 + 30 + 4 + 5 + 6


def test_a_load_counts_answers_for_the_processor_time_they_took() -> None:
    found = measure.Load(said(NOERROR=600, NXDOMAIN=300, SERVFAIL=100), cpu_seconds=0.5)
    assert (found.per_cpu, found.busy) == (1800.0, 0.5)


@pytest.mark.parametrize(
    ("kind", "rcodes"),
    [
        ("blocked", {"NOERROR": 100}),  # the list is not in force
        ("cached", {"NXDOMAIN": 100}),
        ("mixed", {"NOERROR": 100}),
        ("miss", {"SERVFAIL": 100}),  # no upstream
        ("cached", {}),
    ],
)
def test_a_server_that_answers_wrongly_has_no_figures(kind: str, rcodes: dict[str, int]) -> None:
    with pytest.raises(BenchError, match="wrongly"):
        rounds.check("some", kind, said(**rcodes))


def test_right_answers_count() -> None:
    rounds.check("some", "blocked", said(NXDOMAIN=100))
    rounds.check("some", "mixed", said(NOERROR=71, NXDOMAIN=29))


# ── what is asked for, and what comes out ────────────────────────────────────────────────────────────────────────────────


def test_the_chosen_list_comes_after_the_shorter_ones() -> None:
    assert plan(options(["--names", "1000000"])).sizes == (0, 100_000, 1_000_000)
    assert plan(options(["--quick"])).sizes == (0, 10_000)


@pytest.mark.parametrize("words", [["--names", "0"], ["--names", "3000000"], ["--seconds", "1e9"], ["--rounds", "-1"]])
def test_an_unbounded_run_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="at most"):
        plan(options(words))


def results() -> Results:
    made = Results()
    rates = {"Embargo": (50.0, 60.0, 40.0), "Unbound": (100.0, 100.0, 100.0), "dnsmasq": (10.0, 200.0, 10.0)}
    sizes = {"Embargo": (30.0, 30.0, 30.0), "Unbound": (60.0, 60.0, 60.0), "dnsmasq": (4.0, 4.0, 4.0)}
    for name in rates:
        for most, least in zip(rates[name], sizes[name], strict=True):
            made.note(Measure("memory", "memory, MiB"), name, least)
            made.note(rounds.rate("blocked"), name, 1000 * most)
            made.note(Measure("failed", "lost"), name, 0)
    return made


def test_ratios_are_to_the_peer_that_is_best_by_the_median() -> None:
    assert report.table(results()) == [
        ["", "Embargo", "Unbound", "dnsmasq", "Embargo / best peer"],
        ["blocked, queries per CPU-second", "50 000", "100 000", "10 000", "0.50 (0.40 to 0.60)"],
        ["lost", "0", "0", "0", "-"],
        ["memory, MiB", "30", "60", "4", "7.50 (7.50 to 7.50)"],
    ]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.06123, "0.061"), (9.876, "9.88"), (12.34, "12.3"), (123.4, "123"), (98765.4, "98 765")]
)
def test_figures_have_the_digits_that_mean_something(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_table_is_written_between_the_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    text = report.markdown(report.table(results()), Plan(1000, 1.0, 3, 5000), ["a machine", "some versions"])
    report.write(text, page)
    report.write(text, page)
    written = page.read_text()
    assert written.startswith(f"before\n{report.BEGIN}\n| ")
    assert written.endswith(f"\n{report.END}after\n")
    assert written.count("| blocked, queries per CPU-second | 50 000 | 100 000 |") == 1
    assert "old" not in written
    assert "A machine.\nSome versions.\n" in written


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="marks"):
        report.write("table", page)
    assert page.read_text() == "text\n"


def test_our_page_has_the_marks() -> None:
    assert report.PAGE.read_text().partition(report.BEGIN)[2].partition(report.END)[1]


def test_every_round_is_in_the_json() -> None:
    told = report.as_json(results(), Plan(1000, 1.0, 3, 5000), ["a machine"])
    assert told["plan"] == {"names": 1000, "seconds": 1.0, "rounds": 3, "rate": 5000}
    assert told["results"][0]["rounds"]["Embargo"] == [50_000.0, 60_000.0, 40_000.0]


# ── the firewall ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 100, 20_000])
def test_the_networks_of_a_load_are_networks_in_order_and_apart(count: int) -> None:
    found = firewall.networks(count, 1)
    assert len(found) == count
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
    assert [ipaddress.ip_network(firewall.text(*each)) for each in found] == [
        next(ipaddress.summarize_address_range(*map(ipaddress.IPv4Address, each))) for each in found
    ]
    assert firewall.networks(count, 1) == found != firewall.networks(count, 2)


def test_quantiles_are_the_median_and_the_worst_but_one_in_a_hundred() -> None:
    assert firewall.quantiles([number / 1000 for number in range(1000)], 1000) == "500 / 990"
    assert firewall.quantiles([0.002], 1e3) == "2 / 2"


def test_an_image_of_a_load_holds_its_networks() -> None:
    found = firewall.networks(50, 3)
    data, board = firewall.compiled(found)
    assert [(first, last) for first, last, _ in Image(data).ranges(4)] == found
    assert board


# ── fairness ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "stream", "rcode", "records", "cut"),
    [
        ("www.example", False, "NOERROR", 1, 0),
        ("N1.Failing.Example", False, "SERVFAIL", 0, 0),
        ("large.example", False, "NOERROR", 0, 1),
        ("large.example", True, "NOERROR", scripted.RECORDS, 0),
    ],
)
def test_the_scripted_upstream_answers_by_the_name(name: str, stream: bool, rcode: str, records: int, cut: int) -> None:
    query = floods.query(name)
    reply = scripted.reply(query, stream)
    assert reply is not None
    assert reply[:2] == query[:2]
    read = DNSRecord.parse(reply)
    assert (read.header.rcode, len(read.rr), read.header.tc) == ({"NOERROR": 0, "SERVFAIL": 2}[rcode], records, cut)
    assert len(reply) > 1232 or not stream


def test_the_scripted_upstream_is_silent_below_one_zone() -> None:
    assert scripted.reply(floods.query("n7.silent.example"), stream=False) is None
    assert scripted.reply(floods.query("silent.example.org"), stream=False)


def test_every_flood_is_described_and_one_is_watched_over_tcp() -> None:
    assert fairness.OVER_TCP in floods.FLOODS
    assert all(flood.__doc__ for flood in floods.FLOODS.values())
