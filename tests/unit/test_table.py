"""Tables as people see them."""

from embargo.cli.table import cells, layout


def test_columns_are_as_wide_as_their_widest_cell_and_end_without_spaces() -> None:
    assert layout([("APP", "HITS"), ("alipay", "3"), ("qq", "")], None) == ["APP     HITS", "alipay  3", "qq"]


def test_the_widest_column_is_folded_between_words() -> None:
    rows = [("APP", "DETAIL"), ("qq", "packets vanished without a refusal")]
    assert layout(rows, 22) == ["APP  DETAIL", "qq   packets vanished", "     without a refusal"]
    assert layout(rows, None)[1] == "qq   packets vanished without a refusal"


def test_a_word_that_is_too_long_is_folded_inside() -> None:
    assert layout([("x", "a" * 20)], 13) == ["x  " + "a" * 10, "   " + "a" * 10]


def test_no_column_becomes_narrower_than_is_readable() -> None:
    assert layout([("abcdefgh" * 2, "abcdefgh" * 2)], 5) == ["abcdefgh  abcdefgh"] * 2


def test_wide_and_combining_characters_take_their_cells() -> None:
    assert (cells("支付宝"), cells("e\u0301"), cells("é")) == (6, 1, 1)
    assert layout([("支付宝", "1"), ("qq", "2")], None) == ["支付宝  1", "qq      2"]
    assert layout([("支" * 10,)], 9) == ["支" * 4, "支" * 4, "支" * 2]
