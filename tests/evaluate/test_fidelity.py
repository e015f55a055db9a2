import numpy as np
import pytest
import torch

from dpdmd.evaluate.fidelity import frechet_distance, kernel_distance, neighbours


def _draw(n, dim, seed, scale=1.0, shift=0.0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale + shift


def test_frechet_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    mixing = _draw(6, 6, 9)
    a, b = _draw(80, 6, 0) @ mixing, _draw(90, 6, 1, scale=1.7, shift=0.4)
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * linalg.sqrtm(cov_x @ cov_y).real)
    assert frechet_distance(a, b).value == pytest.approx(expected, rel=1e-9)


def test_frechet_of_a_shift_and_a_scale_is_known():
    a = _draw(50, 3, 0).double()
    mean = a.mean(0)
    shift = torch.tensor([1.0, 2.0, -2.0]).double()
    scaled = mean + 3 * (a - mean) + shift
    variance = float(a.var(0).sum())
    # Same eigenvectors: |shift|^2 + (3 - 1)^2 tr C.
    assert frechet_distance(scaled, a).value == pytest.approx(9.0 + 4.0 * variance, rel=1e-9)
    assert frechet_distance(a, a).value == pytest.approx(0.0, abs=1e-9)


def test_too_few_images_for_the_dimension_are_labelled():
    assert not frechet_distance(_draw(8, 8, 0), _draw(50, 8, 1)).reliable
    assert frechet_distance(_draw(9, 8, 0), _draw(50, 8, 1)).reliable


def test_neighbours_agree_with_a_naive_loop():
    a, b, k = _draw(30, 3, 0).double().numpy(), _draw(40, 3, 1, shift=0.7).double().numpy(), 3

    def radius(points):
        return np.array([np.sort(np.linalg.norm(points - p, axis=1))[k] for p in points])

    radius_a, radius_b = radius(a), radius(b)
    inside = np.array([[np.linalg.norm(p - q) <= r for q, r in zip(b, radius_b, strict=True)] for p in a])
    recalled = np.array([[np.linalg.norm(p - q) <= r for p, r in zip(a, radius_a, strict=True)] for q in b])
    out = neighbours(torch.from_numpy(a), torch.from_numpy(b), num_neighbours=k)
    assert out.precision == pytest.approx(inside.any(1).mean())
    assert out.recall == pytest.approx(recalled.any(1).mean())
    assert out.density == pytest.approx(inside.sum() / (k * len(a)))
    assert out.coverage == pytest.approx(inside.any(0).mean())


def test_impossible_sets_are_refused():
    with pytest.raises(ValueError, match="at least 2 images in each set, got 1 and 5"):
        frechet_distance(_draw(1, 3, 0), _draw(5, 3, 0))
    with pytest.raises(ValueError, match="equal dimension"):
        frechet_distance(_draw(5, 3, 0), _draw(5, 4, 0))
    with pytest.raises(ValueError, match="at least 6 images in each set"):
        neighbours(_draw(5, 3, 0), _draw(9, 3, 0))


def test_the_kernel_distance_agrees_with_a_naive_loop_over_pairs():
    a, b = _draw(7, 5, 0).double().numpy(), _draw(9, 5, 1, shift=0.3).double().numpy()

    def k(x, y):
        return (x @ y / 5 + 1) ** 3

    def within(points):
        return np.mean([k(p, q) for i, p in enumerate(points) for j, q in enumerate(points) if i != j])

    expected = within(a) + within(b) - 2 * np.mean([k(p, q) for p in a for q in b])
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_unbiased_where_the_frechet_distance_is_not():
    """Both sets from one distribution: the mean over repetitions is 0 within four standard errors."""
    values = torch.tensor([kernel_distance(_draw(20, 8, i), _draw(20, 8, 1000 + i)) for i in range(200)])
    assert values.mean().abs() < 4 * values.std() / 200**0.5
    assert values.min() < 0 < values.max()
    assert frechet_distance(_draw(20, 8, 0), _draw(20, 8, 1000)).value > 1


def test_the_kernel_distance_does_not_depend_on_the_blocks(monkeypatch):
    a, b = _draw(30, 4, 0), _draw(25, 4, 1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr("dpdmd.evaluate.fidelity.BLOCK", 7)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)
