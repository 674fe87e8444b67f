"""What an export blocks is what the policy blocks, read back by the words of each format; what it cannot say, it tells."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from embargo import config, names
from embargo.export import effective, render
from embargo.export.effective import EffectivePolicy, Verdict
from embargo.export.formats import FORMATS
from embargo.lists import image, policy
from embargo.lists.image import Image
from embargo.lists.policy import Action, App, List, Selection
from embargo.names import Name
from support import exports
from support.strategies import APPS, ASKED, LOCAL, SELECTIONS

CONFIG = config.default()


def policies(apps: tuple[App, ...], local: tuple[List, ...], selection: Selection) -> tuple[EffectivePolicy, exports.Blocks]:
    combined = policy.combine(apps, local, selection)
    built, board = Image(image.encode(combined)), policy.select(apps, combined.classes, selection)
    what = effective.read(built, board, replace(CONFIG, policy=selection), lambda name: False)
    return what, lambda name: board.choose(built.lookup(name))[0] is Action.BLOCK


@st.composite
def cases(draw: st.DrawFn) -> tuple[EffectivePolicy, exports.Blocks, list[Name]]:
    """A policy, what it blocks by the engine's look-up, and names: drawn ones and all that are listed."""
    what, blocks = policies(draw(APPS), draw(LOCAL), draw(SELECTIONS))
    asked = draw(st.lists(ASKED.filter(lambda name: name != names.ROOT), max_size=8))
    return what, blocks, [*asked, *exports.around(ruling.name for ruling in what.names)]


@given(cases())
def test_a_hosts_file_has_the_listed_names_that_are_blocked(case: tuple[EffectivePolicy, exports.Blocks, list[Name]]) -> None:
    what, blocks, asked = case
    reads = exports.hosts(render.render(what, "hosts", "1").text)
    listed = {r.name for r in what.names if Verdict.CANARY not in (r.itself.verdict, r.below.verdict)}
    for name in asked:
        assert reads(name) == (name in listed and blocks(name)), names.to_text(name)


@given(cases())
def test_a_list_of_domains_blocks_the_same_except_for_what_it_reports(
    case: tuple[EffectivePolicy, exports.Blocks, list[Name]],
) -> None:
    what, blocks, asked = case
    made = render.render(what, "domains", "1")
    reads, excepted = exports.domains(made.text), exports.excepted(made.text)
    alone = {ruling.name for ruling in what.names if ruling.itself.blocked and not ruling.below.blocked}
    assert bool(alone) == any(text.startswith("names blocked without the names below them") for text in made.omitted)
    for name in asked:
        if blocks(name) and name not in alone:
            assert reads(name), names.to_text(name)
        if reads(name) and not blocks(name):  # an exception, or below a name that is told to be blocked alone
            assert excepted(name) or not alone.isdisjoint(names.suffixes(name)), names.to_text(name)


@given(cases())
def test_adblock_blocks_the_same_except_for_what_it_reports(case: tuple[EffectivePolicy, exports.Blocks, list[Name]]) -> None:
    what, blocks, asked = case
    made = render.render(what, "adblock", "1")
    reads = exports.adblock(made.text)
    whole = not any("inside exceptions" in text for text in made.omitted)
    for name in asked:
        assert reads(name) == blocks(name) if whole else reads(name) <= blocks(name), names.to_text(name)


@given(APPS, LOCAL, SELECTIONS, st.sampled_from(sorted(FORMATS)))
def test_the_text_does_not_depend_on_the_order_of_lists_and_apps(
    apps: tuple[App, ...], local: tuple[List, ...], selection: Selection, form: str
) -> None:
    one, two = policies(apps, local, selection)[0], policies(apps[::-1], local, selection)[0]
    assert render.render(one, form, "1").text == render.render(two, form, "1").text
