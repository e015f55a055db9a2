"""The cache of embeddings: encoded once, found again, never half written, never wrong."""

import json
import threading
from pathlib import Path

import pytest
import torch

from dpdmd.data import embeddings
from dpdmd.data.embeddings import EmbeddingCache
from dpdmd.method.denoiser import Condition, concatenate
from dpdmd.method.randomness import generator
from dpdmd.models.identity import part_identities
from dpdmd.store import digests, tensor_store


class WordsAdapter:
    """Embeds every word at random, by its name; the padding after shorter prompts is masked."""

    pipeline_class, network_name, token_limits = type("WordsPipeline", (), {}), "network", (("tokenizer", 7),)

    def __init__(self, folder):
        self.source, self.encoded = str(folder), []

    def encode(self, prompts):
        self.encoded += prompts
        return concatenate(map(self.encode_one, prompts))

    def encode_negative(self, prompts):
        return self.encode([" ".join(["not", *prompt.split()]) if prompt else "" for prompt in prompts])

    def encode_one(self, prompt):
        words = prompt.split() or ["<empty>"]
        rows = torch.stack([torch.randn(6, generator=generator(0, word)) for word in words])
        mask = torch.ones(1, len(words), dtype=torch.int64)
        return Condition({"prompt_embeds": rows[None], "pooled": rows.mean(dim=0)[None], "mask": mask})


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    for part in ("text_encoder", "tokenizer", "network", "vae", "scheduler"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    parts = ("text_encoder", "tokenizer", "network", "vae", "scheduler")
    index = {"_class_name": "WordsPipeline", "image_encoder": [None, None]} | {name: ["x", "Y"] for name in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


PROMPTS = ["a red circle", "a", "the small blue cross on a white background", "a red circle", "zwei Kreuze", ""]


def assert_speaks(cache, adapter, prompts):
    for prompt in prompts:
        cached, live = cache.condition([prompt]).tensors, adapter.encode_one(prompt).tensors
        assert cached.keys() == live.keys()
        assert all(torch.equal(cached[name], live[name]) for name in live), prompt


def test_every_prompt_is_encoded_once_and_read_back_bit_for_bit(model, tmp_path):
    adapter = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", adapter)
    cache.ensure(PROMPTS, progress=False)
    assert sorted(adapter.encoded) == sorted(set(PROMPTS))
    assert_speaks(cache, adapter, PROMPTS)
    together, live = cache.condition(PROMPTS).tensors, concatenate(map(adapter.encode_one, PROMPTS)).tensors
    assert all(torch.equal(together[name], live[name]) for name in live)


def test_another_run_encodes_only_what_is_new(model, tmp_path):
    EmbeddingCache(tmp_path / "cache", WordsAdapter(model)).ensure(PROMPTS, progress=False)
    later = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", later)
    cache.ensure([*PROMPTS, "news"], progress=False)
    assert later.encoded == ["news"]
    assert_speaks(cache, later, [*PROMPTS, "news"])


def test_other_encoders_share_nothing_and_another_network_or_scheduler_does(model, tmp_path):
    before = embeddings.encoders_digest(WordsAdapter(model), tmp_path)
    for part in ("network", "vae", "scheduler"):
        (model / part / "config.json").write_text('{"other": 1}')
    assert embeddings.encoders_digest(WordsAdapter(model), tmp_path) == before
    adapter = WordsAdapter(model)
    adapter.token_limits = (("tokenizer", 8),)
    assert embeddings.encoders_digest(adapter, tmp_path) != before
    (model / "text_encoder" / "config.json").write_text('{"other": 1}')
    assert embeddings.encoders_digest(WordsAdapter(model), tmp_path) != before


def test_what_was_written_before_a_kill_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "GROUP", 2)
    monkeypatch.setattr(embeddings, "CHUNK", 1)
    adapter, real = WordsAdapter(model), WordsAdapter.encode
    prompts = [f"prompt {i}" for i in range(7)]

    def dying(self, texts):
        if texts == ["prompt 5"]:
            raise KeyboardInterrupt
        return real(self, texts)

    monkeypatch.setattr(WordsAdapter, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        EmbeddingCache(tmp_path / "cache", adapter).ensure(prompts, progress=False)
    monkeypatch.setattr(WordsAdapter, "encode", real)
    again = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", again)
    cache.ensure(prompts, progress=False)
    assert again.encoded == ["prompt 4", "prompt 5", "prompt 6"]
    assert_speaks(cache, again, prompts)


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data[:-1] + b"\x01", lambda data: b"no"])
def test_damage_is_found_reported_and_repaired(model, tmp_path, damage, caplog):
    EmbeddingCache(tmp_path / "cache", WordsAdapter(model)).ensure(PROMPTS, progress=False)
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    shard.write_bytes(damage(shard.read_bytes()))
    adapter = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", adapter)
    cache.ensure(PROMPTS, progress=False)
    assert "damaged" in caplog.messages[0] and sorted(adapter.encoded) == sorted(set(PROMPTS))
    assert_speaks(cache, adapter, PROMPTS)


def test_writers_at_the_same_time_do_no_harm(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "GROUP", 3)
    prompts = [f"prompt {i}" for i in range(30)]
    errors = []

    def write(order):
        try:
            EmbeddingCache(tmp_path / "cache", WordsAdapter(model)).ensure(order, progress=False)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=(order,)) for order in (prompts, prompts[::-1], prompts[10:])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    adapter = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", adapter)
    assert not errors and cache.missing(prompts) == []
    assert_speaks(cache, adapter, prompts)


def test_what_another_process_removes_during_a_scan_is_passed_over(model, tmp_path, monkeypatch, caplog):
    cache = EmbeddingCache(tmp_path / "cache", WordsAdapter(model))
    cache.ensure(PROMPTS, progress=False)
    gone = [cache.folder / f"{'0' * 64}.safetensors", cache.folder / ".half.tmp"]
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [*glob(folder, pattern), *gone])
    fresh = EmbeddingCache(tmp_path / "cache", WordsAdapter(model))
    assert fresh.missing(PROMPTS) == [] and caplog.messages == []


def test_bf16_halves_the_files_and_rounds_as_bf16_does(model, tmp_path):
    adapter = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", adapter, torch.bfloat16)
    cache.ensure(PROMPTS, progress=False)
    live = adapter.encode_one(PROMPTS[0]).tensors
    cached = cache.condition([PROMPTS[0]]).tensors
    assert cached["prompt_embeds"].dtype == torch.float32 and cached["mask"].dtype == torch.int64
    assert torch.equal(cached["prompt_embeds"], live["prompt_embeds"].bfloat16().float())


def test_only_a_few_shards_are_open_at_a_time(model, tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "GROUP", 1)
    monkeypatch.setattr(tensor_store, "MAX_OPEN_FILES", 2)
    adapter, prompts = WordsAdapter(model), [f"prompt {i}" for i in range(6)]
    cache = EmbeddingCache(tmp_path / "cache", adapter)
    cache.ensure(prompts, progress=False)
    assert_speaks(cache, adapter, prompts * 2)
    assert len(cache.groups._open) == 2


def test_the_size_is_reported_before_writing_and_a_full_disk_refused(model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="dpdmd")
    cache = EmbeddingCache(tmp_path / "cache", WordsAdapter(model))
    cache.ensure(PROMPTS, progress=False)
    assert caplog.messages == [f"encoding 5 prompts, about 0 MiB, into {cache.folder}"]
    monkeypatch.setattr(embeddings.shutil, "disk_usage", lambda folder: embeddings.shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(OSError, match=r"need about .* GiB in .*--no-cache"):
        cache.ensure(["another"], progress=False)
    assert len(list(cache.folder.iterdir())) == 1


def test_a_hub_caches_blobs_are_not_hashed_again(model, tmp_path, monkeypatch):
    digest = "0" * 64
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_text("weights")
    (model / "text_encoder" / "model.safetensors").symlink_to(blob)
    embeddings.encoders_digest(WordsAdapter(model), tmp_path)
    plain = model / "text_encoder" / digest  # a file may be called like a blob without being one
    plain.write_text("other weights")
    with_plain = embeddings.encoders_digest(WordsAdapter(model), tmp_path)
    plain.write_text("changed weights")
    assert embeddings.encoders_digest(WordsAdapter(model), tmp_path) != with_plain
    hashed = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: hashed.append(path))
    embeddings.encoders_digest(WordsAdapter(model), tmp_path)  # and the others are remembered
    assert hashed == []


def test_text_encoders_are_hashed_once_for_the_cache_and_for_the_identity_of_a_run(model, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDMD_CACHE", str(tmp_path / "caches"))
    hashed, real = [], digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: hashed.append(path.parent.name) or real(path))
    EmbeddingCache(tmp_path / "another_place", WordsAdapter(model))
    assert sorted(hashed) == ["text_encoder", "tokenizer"]
    part_identities(str(model))
    assert sorted(hashed) == ["network", "scheduler", "text_encoder", "tokenizer", "vae"]


def test_a_text_as_prompt_and_as_negative_prompt_is_kept_twice_and_an_empty_one_once(model, tmp_path):
    adapter = WordsAdapter(model)
    cache = EmbeddingCache(tmp_path / "cache", adapter)
    cache.ensure(["a red circle", ""], progress=False)
    cache.ensure(["a red circle", ""], negative=True, progress=False)
    assert adapter.encoded == ["a red circle", "", "not a red circle"]
    assert_speaks(cache, adapter, ["a red circle", ""])
    away = cache.condition(["a red circle", ""], negative=True).tensors
    live = adapter.encode_negative(["a red circle", ""]).tensors
    assert all(torch.equal(away[name], live[name]) for name in live)
