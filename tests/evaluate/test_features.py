import json

import pytest
import torch

from dpdmd.evaluate.features import FeatureExtractor, Preprocessing, extract_features, load_extractor

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


def test_preprocessing_agrees_with_pillow():
    pil = pytest.importorskip("PIL.Image")
    np = pytest.importorskip("numpy")
    # Far from 0 and 255, which Pillow clips between its two passes.
    pixels = torch.randint(80, 176, (40, 40, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()
    expected = np.asarray(pil.fromarray(pixels).resize((28, 28), pil.Resampling.BICUBIC)) / 255.0
    expected = (expected - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    preprocess = Preprocessing(28, (28, 28), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    ours = preprocess(image)[0].permute(1, 2, 0).numpy()
    # Pillow rounds to 8 bits after each of its two passes: up to about 1 / 255, over the std of 0.2.
    assert np.abs(ours - expected).max() < 0.03


def test_dinov2_gives_its_pooler_output(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    network = _save(Dinov2Model(Dinov2Config(**TINY)), tmp_path)
    features = extract_features(str(tmp_path), _images())
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
    features = extract_features(tmp_path, _images())
    inputs = Preprocessing(32, (28, 28), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(_images())
    with torch.no_grad():
        expected = network.vision_model(pixel_values=inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)


def test_features_do_not_depend_on_the_batches():
    extractor = FeatureExtractor("mean", lambda images: images.mean(dim=(2, 3)))
    images = _images(7)
    whole = extract_features(extractor, images, batch_size=32)
    torch.testing.assert_close(extract_features(extractor, (image for image in images), batch_size=2), whole)
    torch.testing.assert_close(whole, images.mean(dim=(2, 3)))


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no feature model at .*nowhere"):
        load_extractor(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images"):
        extract_features(FeatureExtractor("mean", lambda images: images), [])


def test_a_text_model_is_refused(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    _save(BertModel(config), tmp_path)
    with pytest.raises(ValueError, match="bert model, not a vision model"):
        load_extractor(tmp_path)
