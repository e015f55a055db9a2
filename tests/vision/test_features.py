import json

import pytest
import torch

from dpdmd.evaluate.diversity import pairwise_diversity, spatial_diversity
from dpdmd.evaluate.folder_features import folder_features
from dpdmd.evaluate.samples import read_samples
from dpdmd.store.png import write_png
from dpdmd.vision.features import FeatureExtractor, Features, extract_features, load_extractor
from dpdmd.vision.preprocessing import Preprocessing

PREPROCESSOR = {
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 28, "width": 28},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def _images(n=3, height=48, width=40):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _save(network, folder):
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return network.eval()


def test_dinov2_gives_its_pooler_output(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = _save(Dinov2Model(Dinov2Config(**TINY)), tmp_path)
    features = extract_features(str(tmp_path), _images()).pooled
    inputs = Preprocessing(32, (28, 28), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(_images())
    with torch.no_grad():
        torch.testing.assert_close(features, network(pixel_values=inputs).pooler_output)
    assert features.shape == (3, 16) and features.dtype == torch.float32


def test_clip_gives_the_class_token_before_the_projection(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    torch.manual_seed(0)
    text = CLIPTextConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**TINY).to_dict())
    network = _save(CLIPModel(config), tmp_path)
    features = extract_features(tmp_path, _images()).pooled
    inputs = Preprocessing(32, (28, 28), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(_images())
    with torch.no_grad():
        expected = network.vision_model(pixel_values=inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)


def test_features_do_not_depend_on_the_batches():
    extractor = FeatureExtractor("mean", lambda images: Features(images.mean(dim=(2, 3))))
    images = _images(7)
    whole = extract_features(extractor, images, batch_size=32).pooled
    torch.testing.assert_close(extract_features(extractor, (image for image in images), batch_size=2).pooled, whole)
    torch.testing.assert_close(whole, images.mean(dim=(2, 3)))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no feature model at .*nowhere"):
        load_extractor(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there are no images"):
        extract_features(FeatureExtractor("mean", Features), [])


def test_a_text_model_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    _save(BertModel(config), tmp_path)
    with pytest.raises(ValueError, match="bert model, not a vision model"):
        load_extractor(tmp_path)


def test_places_are_the_tokens_of_patches_in_their_order(tmp_path):
    """Of a 2 x 2 grid of patches every token is a cell; a class token and DINOv3's registers are none."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(**TINY, intermediate_size=32, num_register_tokens=3)
    network = _save(DINOv3ViTModel(config), tmp_path)
    features = extract_features(tmp_path, _images())
    with torch.no_grad():
        output = network(pixel_values=Preprocessing(32, (28, 28), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(_images()))
    torch.testing.assert_close(features.places, output.last_hidden_state[:, 4:])
    torch.testing.assert_close(features.pooled, output.pooler_output)


def test_cells_are_means_of_the_patches_under_them(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    preprocessor = PREPROCESSOR | {"size": {"height": 64, "width": 64}, "do_center_crop": False}
    network = _save(Dinov2Model(Dinov2Config(**TINY | {"image_size": 64, "patch_size": 8})), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    places = extract_features(tmp_path, _images()).places
    with torch.no_grad():
        inputs = Preprocessing((64, 64), None, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(_images())
        tokens = network(pixel_values=inputs).last_hidden_state[:, 1:].reshape(3, 8, 8, 16)
    assert places.shape == (3, 16, 16)
    torch.testing.assert_close(places[:, 6], tokens[:, 2:4, 4:6].mean(dim=(1, 2)))  # second row, third column


def test_spatial_diversity_sees_what_moves_where_a_mean_over_places_does_not():
    """A bright square at another place of each image: its mean over the image is the same."""
    images = torch.zeros(1, 4, 3, 16, 16)
    for i, (top, left) in enumerate(((0, 0), (0, 8), (8, 0), (8, 8))):
        images[0, i, :, top : top + 8, left : left + 8] = 1
    images[:, :, 2] = 0.5
    maps = images.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)).mean(dim=(-3, -1))
    assert float(pairwise_diversity(maps.mean(dim=(-2, -1)))) == pytest.approx(0, abs=1e-7)
    assert float(spatial_diversity(maps.flatten(-2).transpose(-2, -1))) > 0.3


@pytest.fixture
def folder(tmp_path):
    """Two prompts of two images, one image twice."""
    images = _images(3, 48, 48)
    for i, place in enumerate(("a dog/0.png", "a dog/1.png", "a cat/0.png", "a cat/1.png")):
        (tmp_path / "images" / place).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / "images" / place, images[i % 3])
    return tmp_path / "images"


class Counting:
    """An extractor that counts the images it is given and may stop."""

    def __init__(self, identity="one", stop_after=None):
        self.seen, self.stop_after = 0, stop_after
        self.extractor = FeatureExtractor("counting", self, identity)

    def __call__(self, images):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return Features(images.mean(dim=(2, 3)), images.flatten(2).transpose(1, 2)[:, :5])


def test_features_are_computed_once_and_the_same_image_once(folder, tmp_path):
    samples, cache, first, second = read_samples(folder), tmp_path / "cache", Counting(), Counting()
    without = folder_features(Counting().extractor, samples)
    kept = folder_features(first.extractor, samples, cache=cache)
    again = folder_features(second.extractor, samples, cache=cache)
    assert (first.seen, second.seen) == (3, 0)
    for features in (kept, again):
        assert torch.equal(features.pooled, without.pooled) and torch.equal(features.places, without.places)
    other = Counting("other weights")
    folder_features(other.extractor, samples, cache=cache)
    assert other.seen == 3


def test_an_interrupted_scoring_continues_and_a_damaged_file_is_made_again(folder, tmp_path):
    samples, cache = read_samples(folder), tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        folder_features(Counting(stop_after=2).extractor, samples, cache=cache, batch_size=1)
    rest = Counting()
    folder_features(rest.extractor, samples, cache=cache, batch_size=1)
    assert rest.seen == 1
    damaged = next(cache.glob("*/*.safetensors"))
    damaged.write_bytes(b"half a fi")
    again = Counting()
    features = folder_features(again.extractor, samples, cache=cache)
    assert again.seen == 1 and features.pooled.shape == (4, 3)


def test_an_identity_follows_weights_and_preprocessing(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = _save(Dinov2Model(Dinov2Config(**TINY)), tmp_path)
    first = load_extractor(tmp_path)
    assert load_extractor(tmp_path).identity == first.identity
    assert first.source["revision"] is None and len(first.source["sha256"]) == 64
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"resample": 2}))
    other = load_extractor(tmp_path).identity
    torch.nn.init.ones_(network.layernorm.bias)
    network.save_pretrained(tmp_path)
    assert len({first.identity, other, load_extractor(tmp_path).identity}) == 3


def test_pickled_weights_are_not_read(tmp_path):
    from transformers import Dinov2Config

    Dinov2Config(**TINY).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no \.safetensors file; pickles"):
        load_extractor(tmp_path)
