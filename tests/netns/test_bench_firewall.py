"""The benchmark of the address layer, with little to do: it speaks to the guardian as the supervisor does."""

import pytest

from tools.bench import firewall

pytestmark = pytest.mark.root


def test_it_measures() -> None:
    assert len([*firewall.one_address(2_000)]) == 3
