"""Lists, for any octets: a List or a ListError, and every line is accounted for."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from embargo import names
from embargo.errors import BadValue, ConfigError, ListError, Problem
from embargo.lists import lists
from embargo.lists.lists import Guard
from embargo.lists.policy import EntryKind, Level, Source

SOURCE = Source("alipay/payment.list", Level.APPS, "alipay", "payment", False)

#: what lists are made of, and what has been taken for a line end or a name by mistake
FRAGMENTS = st.sampled_from(
    [
        "alipay.com", "=", "!", "203.0.113.7", "/24", "2001:db8::", "::/0", "#", " # seen", "\n", "\r\n", "\r", "\t",
        "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\ufeff", "\x1b[1m", "\\", "\\046", "。", "支付宝.中国", "*.", "||", "^",
        "https://", ":53", "[", "]", "%", ".", "..", "-", "_", "1", "a" * 64, "²", "\u200d", "$", "<", "@@", " ",
    ]
)  # fmt: skip
FILES = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(FRAGMENTS, max_size=30).map(lambda parts: "".join(parts).encode()),
)


def hold(problems: Iterable[Problem]) -> None:
    """Every problem can be shown, and says what would be right."""
    for problem in problems:
        assert str(problem).isprintable()
        assert problem.hint


@given(FILES)
def test_any_octets_are_a_list_or_a_list_error(data: bytes) -> None:
    try:
        found = lists.parse(data, file="a.list", source=SOURCE, guard=Guard())
    except ListError as error:
        hold([error.problem])
        return
    hold(found.problems)
    assert all(problem.line for problem in found.problems)
    for entry in found.entries:
        assert entry.text.isprintable()
        assert (entry.network is None) == bool(entry.name) == (entry.kind is not EntryKind.NETWORK)


@given(st.lists(st.lists(FRAGMENTS.filter(lambda part: "\n" not in part and "\r" not in part), max_size=5).map("".join)))
def test_every_line_is_an_entry_a_problem_or_says_nothing(lines: list[str]) -> None:
    try:
        found = lists.parse("\n".join(["#", *lines]).encode(), file="a.list", source=SOURCE, guard=Guard())
    except ListError:
        return
    said = [number for number, line in enumerate(lines, start=2) if line.partition("#")[0].strip()]
    assert sorted([e.line for e in found.entries] + [p.line for p in found.problems]) == said
    for entry in found.entries:
        assert lines[entry.line - 2].strip().startswith(entry.text)


@given(FILES)
def test_a_list_written_from_its_entries_means_the_same(data: bytes) -> None:
    try:
        found = lists.parse(data, file="a.list", source=SOURCE, guard=Guard())
    except ListError:
        return
    text = "".join(f"{entry.text}\n" for entry in found.entries)
    again = lists.parse(text.encode(), file="a.list", source=SOURCE, guard=Guard())
    assert not again.problems
    assert [e._replace(line=0, evidence="") for e in again.entries] == [e._replace(line=0, evidence="") for e in found.entries]


@given(st.text(max_size=60))
def test_any_text_is_one_entry_or_refused(text: str) -> None:
    try:
        entry = lists.parse_entry(text)
    except BadValue as refused:
        hold([Problem("a.list", 1, refused.message, refused.hint)])
        return
    assert entry.text == text
    if entry.network is None:
        assert names.from_text(names.to_text(entry.name)) == entry.name


@given(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode)))
def test_any_octets_are_an_app_or_a_config_error(data: bytes) -> None:
    try:
        lists.parse_app(b'id = "x"\nname = "X"\n' + data, "app.toml", "x")
    except ConfigError as error:
        hold(error.problems)
