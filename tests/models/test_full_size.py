"""`benchmarks.full_size` on a tiny model, its kernels, and the page that it fills."""

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import benchmarks.random_pipeline as random_pipeline
from benchmarks.bf16_products import products_in_fp32
from benchmarks.full_size import RESULTS
from benchmarks.full_size_phases import PHASES, Work, read_phase, run_phase
from benchmarks.full_size_table import PAGE, sections
from benchmarks.pareto_page import fill
from benchmarks.random_pipeline import random_weight, write_pipeline
from dpdmd.models.load import load_adapter
from dpdmd.store.files import read_json, write_json


@pytest.fixture
def work(tiny_folder, tmp_path) -> Work:
    """A tiny pipeline with random weights, made from configurations alone."""
    source = tmp_path / "configurations"
    shutil.copytree(tiny_folder("sd1"), source, ignore=shutil.ignore_patterns("*.safetensors", "text_*", "tokenizer"))
    index = read_json(source / "model_index.json")
    write_json(source / "model_index.json", {key: value for key, value in index.items() if key[0] == "_"})
    work = Work(tmp_path / "work", 32)
    write_pipeline(load_adapter(str(source)), work.teacher)
    return work


def test_every_phase_runs_and_says_what_it_took(work):
    found = {}
    for name in PHASES:
        run_phase(name, work)
        found |= read_phase(name, work)
    assert found["planned"]["update"] > found["planned"]["checkpoint"] > found["planned"]["load"] > 0
    for name in ("plan", "load", "update", "checkpoint", "resume", "sample", "export", "export_lora"):
        assert found[name]["seconds"] > 0 and found[name]["peak"] >= 0.9 * found[name]["libraries"] > 0
    assert min(found[name]["written"] for name in ("checkpoint", "resume", "sample", "export", "export_lora")) > 0
    assert found["export"]["written"] > found["load"]["hash_bytes"]  # with a model card
    assert (work.folder / "export_lora" / "pytorch_lora_weights.safetensors").is_file()


def test_random_weights_are_read_from_several_files_as_they_were_drawn(work, monkeypatch):
    monkeypatch.setattr(random_pipeline, "SHARD", 2**17)
    adapter = load_adapter(str(work.teacher))
    shutil.rmtree(work.teacher / "unet")
    (work.teacher / "unet").mkdir()
    with torch.device("meta"):
        network = adapter.network_class.from_config(adapter.network_config)
    write_json(work.teacher / "unet" / "config.json", dict(adapter.network_config))
    random_pipeline.write_weights(network, work.teacher / "unet", "diffusion_pytorch_model", seed=0)
    files = list((work.teacher / "unet").glob("*.safetensors"))
    assert len(files) > 3 and all(file.stat().st_size < 2**18 for file in files)
    for name, tensor in adapter.load_network(torch.bfloat16).state_dict().items():
        assert torch.equal(tensor, random_weight(name, tensor, 0)), name


def test_products_in_fp32_are_those_of_bf16_numbers_rounded_once_also_backwards():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    kernel = (torch.randn(6, 4, 3, 3) / 6).bfloat16().requires_grad_()
    weight = (torch.randn(16, 8) / 3).bfloat16().requires_grad_()
    wide = [t.detach().float().requires_grad_() for t in (x, kernel, weight)]

    def call(x, kernel, weight):
        tokens = F.linear(F.conv2d(x, kernel, padding=1), weight)
        return tokens, F.scaled_dot_product_attention(tokens, tokens, tokens)

    with products_in_fp32():
        tokens, seen = call(x, kernel, weight)
        gradients = torch.autograd.grad(seen.sum(), (x, kernel, weight))
    exact = F.linear(F.conv2d(wide[0], wide[1], padding=1).bfloat16().float(), wide[2]).bfloat16()
    assert tokens.dtype == torch.bfloat16 and torch.equal(tokens, exact)
    rough = torch.autograd.grad(call(*wide)[1].sum(), wide)
    for ours, theirs in zip(gradients, rough, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).norm() < 0.03 * theirs.norm()  # a few roundings to eight bits


def test_the_page_shows_the_results():
    page = Path(PAGE).read_text(encoding="utf-8")
    assert "<!-- full_size phases -->" in page
    assert fill(page, sections(read_json(RESULTS)), marker="full_size") == page
