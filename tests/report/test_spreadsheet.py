import csv

import pytest

from dpdmd.report.spreadsheet import write_rows


def test_csv_quotes_what_a_user_may_have_typed(tmp_path):
    rows = [{"arm": 'a,"b"', "seed": None, "quality": 0.5}, {"arm": "c", "step": 3}]
    write_rows(tmp_path / "x.csv", rows)
    with (tmp_path / "x.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read[0] == {"arm": 'a,"b"', "seed": "", "quality": "0.5", "step": ""}
    assert read[1] == {"arm": "c", "seed": "", "quality": "", "step": "3"}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "=HYPERLINK(1)"])
def test_csv_cells_that_a_spreadsheet_would_evaluate_are_text(tmp_path, text):
    write_rows(tmp_path / "x.csv", [{"prompt": text, "loss": -0.5, text: 1}, {"prompt": "a = b", "loss": -3}])
    with (tmp_path / "x.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    shown = "'" + text.replace("\r", "\n")
    assert read[0] == {"prompt": shown, "loss": "-0.5", shown: "1"}
    assert read[1] == {"prompt": "a = b", "loss": "-3", shown: ""} and len(read) == 2
