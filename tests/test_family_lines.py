"""A family stays cheap to add, and docs/add-a-model.md says what each takes."""

from tools.family_lines import MOST, OLD, PAGE, fill, lines_of_families


def test_the_document_shows_the_lines_of_every_family():
    """`python -m tools.family_lines` writes them."""
    text = PAGE.read_text(encoding="utf-8")
    assert "<!-- family lines -->" in text and fill(text) == text


def test_no_new_family_takes_more_lines_than_agreed():
    over = {name for name, lines in lines_of_families().items() if sum(lines) > MOST}
    assert over == set(OLD), f"a family takes at most {MOST} lines: share what others could use, or leave it out"


def test_lines_of_one_family_alone_are_counted():
    """Counted by hand: LongCat-Image's row and table, whose blocks FLUX.1's layout shares with Chroma1."""
    assert lines_of_families()["LongCatImagePipeline"][1] == 1 + 8 + 1
