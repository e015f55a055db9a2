"""Numbers as texts."""

import pytest

from dpdmd.evaluate.words import joined, signed, times, writer


@pytest.mark.parametrize(
    ("style", "row", "texts"),
    [
        ("number", [2.356, 0.171], ["2.36", "0.17"]),  # as many digits for all, three of the largest
        ("number", [-0.00189, 0.0177], ["-0.0019", "0.0177"]),
        ("number", [21.44, 1234.0], ["21", "1,234"]),
        ("percent", [0.873, 1.0], ["87 %", "100 %"]),
        ("tenths", [0.0, 3.0], ["0", "3"]),  # counts are counts
        ("tenths", [0.0, 0.4], ["0.0", "0.4"]),  # unless they are means of some
        ("count", [300, 192], ["300", "192"]),
        ("seconds", [0.774, 0.0123], ["774 ms", "12 ms"]),
        ("seconds", [12.4, 0.774], ["12.4 s", "0.8 s"]),
        ("bytes", [650 * 2**20, 665 * 2**20], ["650 MiB", "665 MiB"]),
        ("bytes", [2**29, 3 * 2**30], ["0.5 GiB", "3.0 GiB"]),
        ("times", [15.2, 3.94], ["15 ×", "4 ×"]),
        ("decimal", [0.3, 0.075], ["0.30", "0.07"]),
    ],
)
def test_the_digits_and_units_of_a_row_agree(style, row, texts):
    write = writer(style, row)
    assert [write(value) for value in row] == texts


def test_a_time_is_a_part_of_the_teachers():
    assert [times(speedup) for speedup in (15.2, 1.8, 1.25, 0.5)] == ["1/15", "1/2", "80 %", "200 %"]


def test_differences_have_a_sign_unless_they_round_to_zero():
    assert [signed(value, 1) for value in (0.54, -0.54, 0.04, -0.04)] == ["+0.5", "−0.5", "0.0", "0.0"]


def test_lists_are_joined_by_and():
    assert [joined(list(names)) for names in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
