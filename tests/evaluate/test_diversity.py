import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from dpdmd.evaluate.diversity import pairwise_distance, pairwise_diversity, vendi_score


def test_identical_samples_have_no_diversity():
    features = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0)).expand(3, 5, 8)
    torch.testing.assert_close(pairwise_diversity(features), torch.zeros(3).double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(vendi_score(features), torch.ones(3).double(), atol=1e-6, rtol=0)


def test_orthogonal_samples_have_diversity_one_and_count_fully():
    features = 3.0 * torch.eye(6)[None, :4]
    torch.testing.assert_close(pairwise_diversity(features), torch.ones(1).double())
    torch.testing.assert_close(vendi_score(features), torch.full((1,), 4.0).double())


def test_opposite_samples_have_diversity_two():
    features = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])
    torch.testing.assert_close(pairwise_diversity(features), torch.full((1,), 2.0).double())


def test_against_a_double_loop_and_general_eigenvalues():
    features = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(1)) + 1
    for prompt in range(4):
        rows = features[prompt].double().numpy()
        cosines = [
            rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for i in range(7) for j in range(i)
        ]
        assert float(pairwise_diversity(features)[prompt]) == pytest.approx(1 - np.mean(cosines), abs=1e-12)
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        eigenvalues = np.linalg.eigvals(unit @ unit.T / 7).real
        expected = np.exp(-(eigenvalues * np.log(eigenvalues)).sum())
        assert float(vendi_score(features)[prompt]) == pytest.approx(expected, rel=1e-9)


def test_the_pairwise_distance_is_scipys(randn):
    features = randn(0, 3, 5, 7)
    expected = [pdist(samples.double().numpy()).mean() for samples in features]
    np.testing.assert_allclose(pairwise_distance(features).numpy(), expected)


def test_impossible_features_are_refused():
    with pytest.raises(ValueError, match="at least 2 images per prompt, got 1"):
        pairwise_diversity(torch.ones(2, 1, 4))
    with pytest.raises(ValueError, match="zero or not finite"):
        pairwise_diversity(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"\(prompts, samples, dimensions\)"):
        vendi_score(torch.ones(3, 4))
