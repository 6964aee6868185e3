"""What errors of other programs say, in one line."""

import pytest

from megalit.errors import reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one"), "one"),
        (ValueError("\n one\ntwo"), "one"),
        (AssertionError(), "AssertionError"),
        (OSError("  \n"), "OSError"),
    ],
)
def test_it_is_the_first_line_or_the_kind(error: Exception, said: str) -> None:
    assert reason(error) == said
