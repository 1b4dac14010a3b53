"""Texts of strangers are printed without what a terminal would act on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddbench.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe −1 ☃", "Größe −1 ☃"), ("a\x1b[2Jb", "a�[2Jb"), ("a\nb\tc", "a�b�c"), ("\ud800", "�"),
        ("x\u202egnp", "x�gnp"), ("a\u2028b", "a�b"), ("می‌خواهم", "می‌خواهم"), ("", ""),
    ],
)  # fmt: skip
def test_what_acts_is_replaced_and_words_are_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_stay_where_lines_are_meant() -> None:
    assert printable("a\nb\x07", lines=True) == "a\nb�"


@given(text=st.text(), most=st.integers(3, 20))
def test_a_text_is_cut_to_its_length_and_can_be_encoded(text: str, most: int) -> None:
    shown = printable(text, most)
    assert len(shown) <= most
    shown.encode()
    assert printable(shown, most) == shown
