"""Two-sample test and Fréchet distance, compared with closed forms for Gaussians."""

import numpy as np
import pytest
import torch

import vilvm
from vilvm.data.datasets import digits
from vilvm.evaluation import fit_features, frechet_distance, two_sample_test


@pytest.mark.slow
def test_equal_distributions_have_accuracy_one_half():
    torch.manual_seed(0)
    found = [two_sample_test(*torch.randn(2, 500, 5), seed=seed) for seed in range(12)]
    scores = torch.tensor([(f.accuracy - 0.5) / f.se for f in found])
    # The folds share training data, so the binomial error is too small, by less than a factor of
    # two.
    assert abs(scores.mean()) < 5 * 2 / 12**0.5
    assert scores.std() < 2
    assert found[0].num_draws == 500


@pytest.mark.slow
def test_units_do_not_matter():
    torch.manual_seed(0)
    first, second = torch.randn(2, 600, 5)
    second[:, 0] += 1
    found = [
        two_sample_test(scale * first + 7, scale * second + 7).accuracy
        for scale in (1e-3, 255.0)
    ]
    assert max(found) - min(found) < 0.01


def test_accuracy_on_a_shift_is_nearly_optimal():
    torch.manual_seed(0)
    first, second = torch.randn(2, 2000, 5)
    second[:, 0] += 2
    best = torch.special.ndtr(torch.tensor(1.0)).item()  # Φ(δ/2)
    found = two_sample_test(first, second)
    assert best - 0.03 < found.accuracy < best + 5 * 2 * found.se


def test_correlation_is_detected_without_mean_difference():
    torch.manual_seed(0)
    first, second = torch.randn(2, 2000, 2)
    second[:, 1] = 0.9 * second[:, 0] + 0.19**0.5 * second[:, 1]
    found = two_sample_test(first, second)
    assert found.accuracy > 0.6


@pytest.mark.slow
def test_larger_set_is_cut_and_seed_fixes_result():
    x = torch.randn(60, 3)
    assert two_sample_test(x, torch.randn(100, 3)).num_draws == 60
    assert two_sample_test(x, -x, seed=1) == two_sample_test(x, -x, seed=1)


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 3))
    x = rng.normal(size=(50, 3))
    # Mean 0 and covariance I up to rounding.
    x = (x - x.mean(0)) @ np.linalg.cholesky(np.linalg.inv(np.cov(x, rowvar=False)))
    # Covariances A Aᵀ and I: tr(A Aᵀ) + 3 − 2 tr((A Aᵀ)^½), the sum of A's singular values.
    singular = np.linalg.svd(a, compute_uv=False)
    expected = (singular**2).sum() + 3 - 2 * singular.sum() + (b[0] ** 2).sum()
    assert frechet_distance(x @ a.T + b[0], x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x @ a.T + b[0]) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:, :1], 3 * x[:, :1] + 1) == pytest.approx(1 + 4)


def test_features_are_a_classifiers_last_layer():
    data = digits(transform=None)
    features = fit_features(data.train, hidden=(32, 8), epochs=100)
    assert features.accuracy > 0.85
    found = features(data.test.x)
    assert found.shape == (len(data.test), 8)
    assert (found >= 0).all()
    # Data are closer to data than to noise of the same mean and variance for each pixel.
    noise = data.test.x.mean(0) + data.test.x.std(0) * torch.randn_like(data.test.x)
    assert frechet_distance(features(data.train.x), found) < 0.2 * frechet_distance(
        features(noise), found
    )


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"a datum has shape \(3,\), a draw \(4,\)"):
        two_sample_test(torch.zeros(9, 3), torch.zeros(9, 4))
    with pytest.raises(
        ValueError, match="5 folds need 5 data and as many draws; got 4 and 9"
    ):
        two_sample_test(torch.zeros(4, 3), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="folds must be a whole number, at least 2"):
        two_sample_test(torch.zeros(9, 3), torch.zeros(9, 3), folds=1)
    with pytest.raises(ValueError, match="needs a Data of one tensor with labels"):
        fit_features(vilvm.Data(torch.zeros(30, 3)))
    with pytest.raises(
        ValueError, match=r"got features of shapes \(3, 2\) and \(3, 1\)"
    ):
        frechet_distance(np.zeros((3, 2)), np.zeros((3, 1)))
