"""How well a model's draws pass for data: a classifier's two-sample test, and a Fréchet distance.

Both compare draws with held-out data and know nothing of densities, so they also judge what has no
bound, and may be blind to what a bound sees.

- Two-sample test: a classifier is trained to tell draws from data; its cross-validated accuracy is
  ½ if it cannot, 1 if it always can. It is a lower bound on what the best classifier could do, (1
  + total variation distance) / 2.
- Fréchet distance: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), the 2-Wasserstein distance squared
  between Gaussians of the same moments, in the features of a small classifier of the data's
  labels, trained here. So it is not the FID of the literature, whose features are those of
  Inception, and it can be compared only where features and number of draws are the same; it is
  biased upwards, the less the more draws.

References: Revisiting Classifier Two-Sample Tests, David Lopez-Paz and Maxime Oquab, 2017; GANs
Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, Heusel et al., 2017.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vilvm._runtime.argument_checks import check_number, check_seed, check_sizes, check_tensor
from vilvm.data.data import Data, as_data

__all__ = ["Features", "TwoSample", "fit_features", "frechet_distance", "two_sample_test"]

_STEPS = 320  # of the two-sample classifier's training, however many the draws


class TwoSample(NamedTuple):
    """What a classifier two-sample test found.

    Arguments:
        accuracy: cross-validated; ½ where draws cannot be told from data.
        se: its binomial standard error; the folds share their training data, so that the true one
            is somewhat larger.
        num_draws: draws, and as many data.
    """

    accuracy: float
    se: float
    num_draws: int


def two_sample_test(data: Tensor, draws: Tensor, *, folds: int = 5, seed: int = 0) -> TwoSample:
    """How often a perceptron of one hidden layer (64 units, scikit-learn) tells draws from data,
    cross-validated.

    Arguments:
        data: held-out data, shape (num_data, ...).
        draws: shape (num_draws, ...); of the larger set, as many as the other has are taken.
        folds: of the cross-validation.
        seed: of the folds and the classifier's start.

    Raises:
        ValueError: the shapes differ, or there are fewer than `folds` of either.

    Example:
        >>> import torch
        >>> from vilvm.evaluation import two_sample_test
        >>> two_sample_test(torch.zeros(50, 3), torch.ones(50, 3)).accuracy
        1.0
    """
    # here, for it takes seconds to import
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier

    seed = check_seed("two_sample_test: seed", seed)

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
    # one unit for all components, whatever that of the data is
    rows = (rows - rows.mean(0)) / max(rows.std(), 1e-30)
    labels = np.repeat([0, 1], count)
    batch = min(200, count)
    passes = max(1, round(_STEPS * batch / (2 * count * (1 - 1 / folds))))
    options: dict[str, Any] = {
        "batch_size": batch,
        "max_iter": passes,
        "alpha": 1e-3,
        "random_state": seed % 2**32,
    }
    classifier = MLPClassifier((64,), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stops after max_iter, which is meant
        said = cross_val_predict(
            classifier,
            rows,
            labels,
            cv=StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32),
        )
    accuracy = float(np.mean(np.asarray(said) == labels))
    return TwoSample(accuracy, (accuracy * (1 - accuracy) / (2 * count)) ** 0.5, count)


class Features:
    """The last hidden layer of a perceptron trained to tell the labels of a data set: (num_data,
    ...) to (num_data, num_features).

    Arguments:
        layers: weight and bias of each hidden layer.
        accuracy: of the classifier on data that it was not trained on.
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
    """Trains the small classifier in whose features a Fréchet distance is taken (scikit-learn's
    perceptron).

    Arguments:
        data: a ``Data`` with labels; its transform is drawn once. A tenth is held out, to say how
            good the classifier is.
        hidden: sizes of its hidden layers.
        epochs: passes over the data.
        seed: of its start and of the split.

    Raises:
        ValueError: the data have no labels, fewer than 20, or are not one tensor.
    """
    from sklearn.neural_network import MLPClassifier  # here, for it takes seconds to import

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
        "random_state": seed % 2**32,
    }
    classifier = MLPClassifier(hidden, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier.fit(rows[train], labels[train])
    layers = list(zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True))
    return Features(layers, float(classifier.score(rows[held_out], labels[held_out])))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The Fréchet distance, squared, between Gaussians with the moments of two sets of features,
    shape (num_data, num_features) each.

    Raises:
        ValueError: the sets have different features, or fewer than two members.

    Example:
        >>> import numpy as np
        >>> from vilvm.evaluation import frechet_distance
        >>> x = np.random.default_rng(0).normal(size=(100, 3))
        >>> round(frechet_distance(x, x + 2), 6)
        12.0
    """
    if not all(
        isinstance(part, np.ndarray) and part.dtype.kind in "fiub" and np.isfinite(part).all()
        for part in (first, second)
    ):
        raise ValueError(
            "frechet_distance: first and second must be NumPy arrays of finite features, as "
            "Features gives them."
        )
    if first.ndim != 2 or first.shape[1:] != second.shape[1:] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"frechet_distance: got features of shapes {first.shape} and {second.shape}."
        )
    shift = first.mean(0) - second.mean(0)
    covs = [np.atleast_2d(np.cov(part, rowvar=False)) for part in (first, second)]
    values, vectors = np.linalg.eigh(covs[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covs[1] @ root).clip(min=0)).sum()
    return float(shift @ shift + np.trace(covs[0]) + np.trace(covs[1]) - 2 * cross)


def _rows(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().flatten(1).numpy()
