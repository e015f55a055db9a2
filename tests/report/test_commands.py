"""Command lines on the page, dates, and terms."""

import json

from dpdmd.report.commands import commands
from dpdmd.report.provenance import readable_date
from dpdmd.report.runs import ArmReport
from dpdmd.report.status import Status
from dpdmd.report.terms import Terms


def run(tmp_path, *started):
    sessions = {"sessions": [{"command": command} for command in started]}
    settings = {"provenance.json": json.dumps(sessions)}
    return ArmReport("DMD", folder=tmp_path / "a run", settings=settings, status=Status(3, 3, True))


def test_the_commands_that_made_a_run_are_shown_as_they_were_typed(tmp_path):
    first = ["/env/bin/dpdmd", "train", "recipe.toml", "--set", "output.folder=a run"]
    again = ["/src/dpdmd/__main__.py", "train", "a run", "--resume"]
    found = commands({"dmd": run(tmp_path, first, again)}, [tmp_path / "a run"])
    lines = [command.line for command in found]
    assert lines[:2] == ["dpdmd train recipe.toml --set 'output.folder=a run'", "dpdmd train 'a run' --resume"]
    assert lines[2] == f"dpdmd report '{tmp_path}/a run' --out report.html"
    assert [line.split()[1] for line in lines[3:]] == ["sample", "export"]


def test_a_run_that_another_program_started_has_its_recipe(tmp_path):
    found = commands({"dmd": run(tmp_path, ["train.py", "x"], "broken")}, [])
    assert found[0].line == f"dpdmd train '{tmp_path}/a run/recipe.toml'"
    assert commands({"teacher": ArmReport("Teacher", folder=tmp_path)}, []) == []


def test_dates_are_readable():
    assert readable_date("2026-11-29T19:37:42+0000") == "29 November 2026, 19:37 UTC"
    assert readable_date("2026-01-02T03:04:05+0530") == "2 January 2026, 03:04 UTC+0530"
    assert readable_date("yesterday") == "yesterday" and readable_date(None) is None


def test_a_term_is_linked_where_it_is_first_used_and_as_a_whole_word():
    term = Terms().link
    first = term("DP-DMD keeps 90 % of the teacher's diversity; DMD: 9 %")
    assert first.count("<a ") == 3 and ">teacher&#39;s diversity</a>" in first and "90\u00a0%" in first
    assert "<a " not in term("DMD and DP-DMD, and diversity again")
    assert term("<b>DMDx</b>") == "&lt;b&gt;DMDx&lt;/b&gt;"
