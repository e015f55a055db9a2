"""The model card: scores as measured, the licence of the base, and no text that breaks the page."""

import json
import shlex

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from dpdmd.models.load import built_in_teacher
from dpdmd.models.student_file import StudentFile
from dpdmd.publish.card import (
    CardParts,
    base_licence,
    metrics_section,
    model_card,
    read_metrics,
    require_licence,
    unscored_section,
    without_paths,
)
from dpdmd.publish.export import export_run
from dpdmd.publish.pictures import Picture

INFO = StudentFile(base="some/base", grid=(1.0, 0.9, 0.75, 0.5, 0.0), objective="dp_dmd", updates=7)
METRICS = {
    "num_prompts": 24,
    "images_per_prompt": 16,
    "saturation": 0.0625,
    "frechet": 0.6134,
    "frechet_reliable": False,
    "diversity": 0.29998,
    "diversity_share": 1.02116,
    "validity": None,
    "intervals": {"diversity": [0.27822, 0.32084], "diversity_share": [0.93116, 1.13897]},
    "provenance": {"features": "scenes"},
}


def card(info: StudentFile = INFO, **changes) -> str:
    settings = {
        "name": "student",
        "base": "some/base",
        "hub_base": "some/base",
        "snippet": "image = pipe('x')\n",
        "licence": {"license": "mit"},
        "metrics": METRICS,
    } | changes
    return model_card(info, CardParts(**settings))


def tokens(text: str) -> list:
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(text).text)


def headings(text: str) -> list[str]:
    parsed = tokens(text)
    return [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]


def write_base(folder, head: str):
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A base\n")
    return str(folder)


def test_the_hub_reads_the_head_of_the_card():
    head = ModelCard(card()).data.to_dict()
    assert head["base_model"] == "some/base" and head["license"] == "mit"
    assert head["library_name"] == "diffusers" and head["pipeline_tag"] == "text-to-image"
    assert "dpdmd" in head["tags"]


def test_a_base_that_is_a_folder_is_no_base_model_for_the_hub():
    text = card(hub_base=None, base="base")
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "- Base model: `base`" in text


def test_the_table_holds_the_measured_scores_with_their_intervals():
    text = metrics_section(METRICS)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    scores = {name: (value, interval) for name, value, interval, _ in rows[2:]}
    assert scores == {
        "diversity": ("0.300", "0.278 to 0.321"),
        "diversity_share": ("1.021", "0.931 to 1.139"),
        "frechet": ("0.613", ""),
        "saturation": ("0.062", ""),
    }
    assert "24 prompts, 16 images each, features of `scenes`" in text and "95 % bootstrap" in text
    assert "Do not rely on the Frechet distance" in text
    assert "Do not rely" not in metrics_section(METRICS | {"frechet_reliable": True})
    assert "diversity was not measured" in metrics_section(METRICS | {"provenance": {"features": None}})


def test_a_student_without_scores_names_the_commands_that_make_them():
    text = unscored_section("my base")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("dpdmd")]
    assert "has not been evaluated yet" in text
    assert [line[:3] for line in lines[:2]] == [["dpdmd", "sample", "my base"], ["dpdmd", "sample", "RUN"]]
    reference = lines[0][lines[0].index("--out") + 1]
    assert lines[2] == [
        "dpdmd", "evaluate", "RUN/samples", "--reference", reference, "--out", "RUN/metrics.json"
    ]  # fmt: skip
    assert "dpdmd sample RUN" in card(metrics=None)


def test_the_hub_lists_the_scores():
    (result, *others) = ModelCard(card()).data.eval_results
    assert (result.metric_type, result.metric_value) == ("diversity_share", 1.0212)
    assert result.dataset_name == "24 prompts, 16 images each" and result.task_type == "text-to-image"
    assert {other.metric_type for other in others} == {"diversity", "frechet", "saturation"}
    assert ModelCard(card()).data.to_dict()["model-index"][0]["name"] == "student"
    assert "model-index" not in ModelCard(card(metrics=None)).data.to_dict()


def test_a_line_break_in_a_licence_adds_no_key():
    head = ModelCard(card(licence={"license": "mine\nprivate: true\n---\n", "license_name": "a: b"})).data.to_dict()
    assert head["license"] == "mine\nprivate: true\n---\n" and head["license_name"] == "a: b"
    assert "private" not in head


def test_a_card_names_no_path_of_this_machine():
    recipe = 'teacher = "/home/me/models/base"\nprompts = \'~/p.txt\'\nfolder = "runs/x"\nlist = ["/a/b/", "c/d"]\n'
    assert without_paths(recipe) == 'teacher = "base"\nprompts = \'p.txt\'\nfolder = "runs/x"\nlist = ["b", "c/d"]\n'
    assert "/home" not in card(recipe=recipe)


def test_picture_settings_and_facts_have_their_places():
    text = card(
        picture=Picture("Above, below.", ["a ` b"]), comfyui=["SamplerCustom: cfg 1"], facts=["Trained at 8 x 8"]
    )
    assert "![Teacher and student](images.png)\n\nAbove, below. Prompts: `` a ` b ``.\n" in text
    assert "- Trained at 8 x 8\n" in text and headings(text)[1:] == ["Use", "ComfyUI", "Scores", "Licence"]
    assert "`comfyui_workflow.json`" in text and "- SamplerCustom: cfg 1\n" in text
    assert "## ComfyUI\n\nThere is no workflow for ComfyUI of this kind of model." in card(comfyui=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arms": {"dmd": {}}}, "several arms"),
        ([], 'no valid "num_prompts"'),
        ({"loss": 1}, 'no valid "num_prompts"'),
        (METRICS | {"intervals": None}, 'no valid "intervals"'),
        (METRICS | {"diversity": "0.3"}, 'its "diversity" is not a number'),
        (METRICS | {"diversity": float("nan")}, 'its "diversity" is not a number'),
        (METRICS | {"intervals": {"diversity": [0.1]}}, 'its "diversity" is not a number'),
        (METRICS | {"intervals": {"diversity": [0.1, None]}}, 'its "diversity" is not a number'),
    ],
)
def test_metrics_that_are_none_of_ours_are_refused_in_one_sentence(content, message, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        read_metrics(tmp_path / "m.json")
    assert str(tmp_path / "m.json") in str(raised.value) and "\n" not in str(raised.value)


def test_metrics_that_are_ours_are_read_as_they_are(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(METRICS))
    assert read_metrics(tmp_path / "m.json") == METRICS


def test_the_built_in_teacher_is_apache():
    assert base_licence(str(built_in_teacher())) == {"license": "apache-2.0"}


def test_the_licence_is_the_bases_own(tmp_path):
    base = write_base(tmp_path, "license: other\nlicense_name: their-licence\nlicense_link: https://x.org/l\ntags: [a]")
    licence = base_licence(base)
    assert licence == {"license": "other", "license_name": "their-licence", "license_link": "https://x.org/l"}
    text = card(licence=licence)
    assert ModelCard(text).data.license_name == "their-licence"
    assert "`their-licence` (<https://x.org/l>)" in text


def test_a_link_inside_the_bases_repository_becomes_an_address(tmp_path, monkeypatch):
    base = write_base(tmp_path, "license: other\nlicense_name: their-licence\nlicense_link: LICENSE.md")
    assert "license_link" not in base_licence(base)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda source, name: f"{base}/{name}")
    assert base_licence("some/base")["license_link"] == "https://huggingface.co/some/base/blob/main/LICENSE.md"


@pytest.mark.parametrize("head", [None, "tags: [a]", "license: unknown", "license: [", "- a"])
def test_a_base_that_names_no_licence_leaves_it_unknown(head, tmp_path):
    licence = base_licence(str(tmp_path) if head is None else write_base(tmp_path, head))
    assert licence == {}
    text = card(licence=licence)
    assert ModelCard(text).data.license == "unknown"
    assert "look there before you use this one" in text


def test_a_hub_that_cannot_be_reached_leaves_the_licence_unknown(monkeypatch):
    def offline(*_):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    assert base_licence("some/base") == {}


def test_no_text_of_the_user_breaks_the_card():
    nasty = "a `b` | c\n```\n# oops\n---\n<b>*_"
    recipe = f'[data]\nprompts = """{nasty}\n````\n# oops\n"""\n'
    snippet = f"image = pipe({nasty!r})\n{nasty}\n"
    metrics = METRICS | {"provenance": {"features": nasty}}
    text = card(base=nasty, hub_base=nasty, licence={"license": nasty}, recipe=recipe, snippet=snippet, metrics=metrics)
    one_line = " ".join(nasty.split())
    assert ModelCard(text).data.license == nasty and ModelCard(text).data.base_model == nasty
    assert headings(text)[1:] == ["Use", "ComfyUI", "Scores", "Licence", "Recipe"]
    parsed = tokens(text)
    assert [token.content.rstrip() for token in parsed if token.type == "fence"] == [snippet.rstrip(), recipe.rstrip()]
    spans = [child.content for token in parsed for child in token.children or [] if child.type == "code_inline"]
    assert spans.count(one_line) == 4  # title, base model, features, licence
    assert sum(token.type == "tr_open" for token in parsed) == 1 + 4


@pytest.mark.parametrize(
    "name", ["mit\nprivate: true", "mit\n---\n# own", "", " mit", "a b", "<script>", "x" * 101, "mit\x1b[2J", "größe"]
)
def test_a_licence_that_is_no_identifier_is_refused_by_its_option(name, tmp_path):
    with pytest.raises(ValueError, match="--license must be an identifier"):
        export_run(tmp_path, tmp_path / "out", license=name)
    for known in ("apache-2.0", "openrail++", "cc-by-nc-4.0", "other"):
        require_licence(known)


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ('license: "other\\nprivate: true"', {"license": "other private: true"}),
        ("license: [mit, apache-2.0]", {"license": "mit, apache-2.0"}),
        ("license: other\nlicense_link: 'javascript:alert(1)'", {"license": "other"}),
        ("license: other\nlicense_link: 'https://x.org/l> <b>'", {"license": "other"}),
        ("license: other\nlicense_name: 7\nlicense_link: [1]", {"license": "other", "license_name": "7"}),
    ],
)
def test_the_licence_of_somebodys_card_is_one_line_of_plain_text(head, fields, tmp_path):
    licence = base_licence(write_base(tmp_path, head))
    assert licence == fields
    data = ModelCard(card(licence=licence)).data.to_dict()
    assert "private" not in data and data["license"] == fields["license"]
