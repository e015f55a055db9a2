import csv

from dpdmd.report.spreadsheet import write_rows


def test_csv_quotes_what_a_user_may_have_typed(tmp_path):
    rows = [{"arm": 'a,"b"', "seed": None, "quality": 0.5}, {"arm": "c", "step": 3}]
    write_rows(tmp_path / "x.csv", rows)
    with (tmp_path / "x.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read[0] == {"arm": 'a,"b"', "seed": "", "quality": "0.5", "step": ""}
    assert read[1] == {"arm": "c", "seed": "", "quality": "", "step": "3"}
