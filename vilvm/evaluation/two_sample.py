"""Draws compared with data: a classifier two-sample test and a Fréchet distance.

Both use only draws and held-out data. So they also apply to models without a bound on the
evidence, and may miss faults that a bound shows.

- Two-sample test: a classifier is trained to separate draws from data. Its cross-validated
  accuracy is ½ if they cannot be distinguished and 1 if they always can. It is a lower bound on
  the accuracy of the best classifier, (1 + total variation distance) / 2.
- Fréchet distance: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), the 2-Wasserstein distance squared
  between Gaussians of the same moments, in the features of a small classifier of the data's
  labels, trained here. It is not the FID of the literature, whose features are those of
  Inception. Two distances are comparable only for the same features and number of draws. The
  estimate is biased upwards; the bias decreases with the number of draws.

References: Revisiting Classifier Two-Sample Tests, David Lopez-Paz and Maxime Oquab, 2017; GANs
Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import (
    check_number,
    check_seed,
    check_sizes,
    check_tensor,
)
from vilvm.data.data import Data, as_data

__all__ = [
    "Features",
    "TwoSample",
    "fit_features",
    "frechet_distance",
    "two_sample_test",
]

_STEPS = 320  # training steps of the two-sample classifier, for any number of draws


class TwoSample(NamedTuple):
    """The result of a classifier two-sample test.

    Arguments:
        accuracy: cross-validated; ½ if draws and data cannot be distinguished.
        se: its binomial standard error; the true one is somewhat larger, because the folds share
            training data.
        num_draws: the number of draws, and of data.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import two_sample_test
        >>> two_sample_test(torch.zeros(50, 3), torch.ones(50, 3)).num_draws
        50
    """

    accuracy: float
    se: float
    num_draws: int


def two_sample_test(
    data: Tensor, draws: Tensor, *, folds: int = 5, seed: int = 0
) -> TwoSample:
    """Cross-validated accuracy of a classifier that separates draws from data.

    The classifier is scikit-learn's perceptron with one hidden layer of 64 units. The larger set
    is cut to the size of the smaller.

    Arguments:
        data: held-out data, shape (num_data, ...).
        draws: draws from the model, shape (num_draws, ...).
        folds: number of folds of the cross-validation.
        seed: seed of the folds and the classifier's initial weights.

    Returns:
        TwoSample.

    Raises:
        ValueError: the shapes differ, or there are fewer than `folds` of either.

    Reference: Revisiting Classifier Two-Sample Tests, David Lopez-Paz and Maxime Oquab, 2017.

    Examples:
        >>> import torch
        >>> from vilvm.evaluation import two_sample_test
        >>> two_sample_test(torch.zeros(50, 3), torch.ones(50, 3)).accuracy
        1.0
    """
    # Imported here because it takes seconds.
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier

    seed = _numpy_seed(check_seed("two_sample_test: seed", seed))
    folds = check_number("two_sample_test: folds", folds, least=2)
    check_tensor("two_sample_test: data", data)
    check_tensor("two_sample_test: draws", draws)
    if data.shape[1:] != draws.shape[1:]:
        raise ValueError(
            f"two_sample_test: a datum has shape {tuple(data.shape[1:])}, a draw "
            f"{tuple(draws.shape[1:])}; they must be equal."
        )
    count = min(len(data), len(draws))
    if count < folds:
        raise ValueError(
            f"two_sample_test: {folds} folds need {folds} data and as many draws; got {len(data)} "
            f"and {len(draws)}."
        )
    rows = _rows(torch.cat([data[:count], draws[:count].to(data)]))
    # One scale for all components, so that the unit of the data does not matter.
    rows = (rows - rows.mean(0)) / max(rows.std(), 1e-30)
    labels = np.repeat([0, 1], count)
    batch = min(200, count)
    passes = max(1, round(_STEPS * batch / (2 * count * (1 - 1 / folds))))
    options: dict[str, Any] = {
        "batch_size": batch,
        "max_iter": passes,
        "alpha": 1e-3,
        "random_state": seed,
    }
    classifier = MLPClassifier((64,), **options)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stopping at max_iter is intended
        predicted = cross_val_predict(classifier, rows, labels, cv=split)
    accuracy = float(np.mean(np.asarray(predicted) == labels))
    return TwoSample(accuracy, (accuracy * (1 - accuracy) / (2 * count)) ** 0.5, count)


class Features:
    """The last hidden layer of a perceptron trained to classify a data set's labels.

    Maps (num_data, ...) to (num_data, num_features).

    Arguments:
        layers: weight and bias of each hidden layer.
        accuracy: accuracy of the classifier on data that it was not trained on.

    Examples:
        >>> import numpy as np, torch
        >>> from vilvm.evaluation import Features
        >>> features = Features([(np.ones((3, 2)), np.zeros(2))], accuracy=1.0)
        >>> features(torch.ones(5, 3)).shape
        (5, 2)
    """

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], accuracy: float):
        self.layers, self.accuracy = layers, accuracy

    def __call__(self, x: Tensor) -> np.ndarray:
        """The features of every datum, float64."""
        out = _rows(x)
        for weight, bias in self.layers:
            out = np.maximum(out @ weight + bias, 0)
        return out


def fit_features(
    data: Any, *, hidden: tuple[int, ...] = (256, 64), epochs: int = 15, seed: int = 0
) -> Features:
    """Trains a small classifier, whose features a Fréchet distance uses (scikit-learn).

    Arguments:
        data: ``Data`` with labels; its transform is drawn once. A tenth of the data is held out to
            measure the classifier's accuracy.
        hidden: sizes of the hidden layers.
        epochs: passes over the data.
        seed: seed of the initial weights and the split.

    Returns:
        Features.

    Raises:
        ValueError: the data have no labels, are fewer than 20, or are not one tensor.

    Examples:
        >>> import torch
        >>> from vilvm import Data
        >>> from vilvm.evaluation import fit_features
        >>> data = Data(torch.eye(40), labels=torch.arange(40) % 2)
        >>> fit_features(data, hidden=(8,), epochs=1)(data.x).shape
        (40, 8)
    """
    # Imported here because it takes seconds.
    from sklearn.neural_network import MLPClassifier

    seed = check_seed("fit_features: seed", seed)
    epochs = check_number("fit_features: epochs", epochs)
    hidden = check_sizes("fit_features: hidden", hidden)
    fixed: Data = as_data(data).fixed(seed)
    if fixed.labels is None or not isinstance(fixed.x, Tensor) or len(fixed) < 20:
        raise ValueError(
            "fit_features needs a Data of one tensor with labels, of 20 data or more: Data(x, "
            "labels=...)."
        )
    rows, labels = _rows(fixed.x), fixed.labels.cpu().numpy()
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, train = order[: len(order) // 10], order[len(order) // 10 :]
    options: dict[str, Any] = {
        "batch_size": min(200, len(train)),
        "max_iter": epochs,
        "random_state": _numpy_seed(seed),
    }
    classifier = MLPClassifier(hidden, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(rows[train], labels[train])
    layers = list(zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True))
    return Features(layers, float(classifier.score(rows[held_out], labels[held_out])))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians with the moments of two sets of features.

    Arguments:
        first: features, shape (num_data, num_features).
        second: features, shape (any number, num_features).

    Returns:
        The distance, in squared units of the features.

    Raises:
        ValueError: the sets have different features, or fewer than two members, or are not finite.

    Reference: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium,
    Heusel et al., 2017.

    Examples:
        >>> import numpy as np
        >>> from vilvm.evaluation import frechet_distance
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> round(frechet_distance(x, x + 2), 6)
        12.0
    """
    if not (_are_features(first) and _are_features(second)):
        raise ValueError(
            "frechet_distance: first and second must be NumPy arrays of finite features, as "
            "Features gives them."
        )
    if (
        first.ndim != 2
        or first.shape[1:] != second.shape[1:]
        or min(len(first), len(second)) < 2
    ):
        raise ValueError(
            f"frechet_distance: got features of shapes {first.shape} and {second.shape}."
        )
    shift = first.mean(0) - second.mean(0)
    covs = [np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second)]
    values, vectors = np.linalg.eigh(covs[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covs[1] @ root).clip(min=0)).sum()
    return float(shift @ shift + np.trace(covs[0]) + np.trace(covs[1]) - 2 * cross)


def _numpy_seed(seed: int) -> int:
    """A seed for scikit-learn, which accepts 32 bits, from a seed for torch."""
    return seed % 2**32


def _are_features(x: Any) -> bool:
    return (
        isinstance(x, np.ndarray)
        and x.dtype.kind in "fiub"
        and bool(np.isfinite(x).all())
    )


def _rows(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().flatten(1).numpy()
