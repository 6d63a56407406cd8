"""The comparison of outputs can fail."""

import pytest

from .outputs import differences

SAME = [
    ("a 1.23\nb", "a 1.23\nb"),
    ("1.24", "1.23"),
    ("-0.0", "0.0"),
    ("3.1e-07", "3.0e-07"),
    ("first\nmiddle\nlast", "first\n...\nlast"),
    ("1   2", "1 2"),
    ("(5, 2)", "(5, 2)"),
]
DIFFERENT = [
    ("1.25", "1.23"),
    ("3.1e-06", "3.0e-07"),
    ("(5, 3)", "(5, 2)"),
    ("nan", "1.0"),
    ("a", ""),
    ("", "a"),
    ("first\nlast", "first\nlast\nmore"),
    ("first\nmore\nlast", "first\nlast"),
    ("first\nother", "first\n...\nlast"),
    ("x 1.0 y", "x 1.0 z"),
]


@pytest.mark.parametrize(("got", "shown"), SAME)
def test_accepts(got, shown):
    assert differences(got, shown) == ""


@pytest.mark.parametrize(("got", "shown"), DIFFERENT)
def test_refuses(got, shown):
    assert differences(got, shown)
