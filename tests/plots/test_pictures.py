"""Pictures, latents and curves of any model with one latent vector."""

import numpy as np
import pytest
import torch

import vilvm
from vilvm import plots
from vilvm.data import Corrupted, PixelErasure
from vilvm.data.datasets import digits
from vilvm.evaluation.interpolation import great_circle, line
from vilvm.models.denoising_autoencoder import DenoisingAutoencoder
from vilvm.models.vae import VAE
from vilvm.plots._model import spread, vector_latent


@pytest.fixture
def data():
    return digits().test


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_every_figure_draws(tmp_path, data, latent):
    lvm = VAE(64, latent, encoder_hidden=(8,), decoder_hidden=(8,))
    history = vilvm.fit(lvm, data, steps=100, batch_size=50).history
    figures = [
        plots.reconstructions(lvm, data),
        plots.prior_samples(lvm, data, 16),
        plots.interpolations(lvm, data, pairs=2),
        plots.elbo_curves(history),
        plots.latent_scatter(lvm, data),
    ]
    if latent == 2:
        figures.append(plots.manifold(lvm, data, side=5))
    for i, figure in enumerate(figures):
        path = tmp_path / f"{i}.png"
        figure.savefig(path)
        assert path.stat().st_size > 1000


def test_reconstructions_show_the_data(data):
    lvm = VAE(64, 2)
    axes = plots.reconstructions(lvm, data, 4).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape == (2 * 9 - 1, 4 * 9 - 1)
    assert set(np.unique(sheet[:8, :8])) <= {
        0.0,
        1.0,
    }  # binarised data are black and white


def test_manifold_needs_two_dimensions(data):
    with pytest.raises(ValueError, match="needs 2"):
        plots.manifold(VAE(64, 3), data)


def test_figures_need_one_vector_latent(data):
    with pytest.raises(ValueError, match="one latent"):
        vector_latent({"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)})


def test_short_history_has_markers():
    lvm, x = VAE(6, 2), torch.zeros(8, 6)
    figure = plots.elbo_curves(vilvm.fit(lvm, x, steps=3).history)
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)


@pytest.mark.parametrize("count", [2, 5])
def test_few_data_in_a_plain_tensor(count):
    lvm, x = VAE(6, 3), torch.zeros(count, 6)
    for figure in (
        plots.interpolations(lvm, x),
        plots.reconstructions(lvm, x),
        plots.latent_scatter(lvm, x),
    ):
        assert figure.axes


def test_interpolations_need_two_data():
    with pytest.raises(ValueError, match="at least two data; got 1"):
        plots.interpolations(VAE(6, 3), torch.zeros(1, 6))


def test_colours_are_kept():
    x = torch.rand(4, 3 * 4 * 5)
    figure = plots.reconstructions(
        VAE(60, 2, "gaussian"), vilvm.Data(x, image_shape=(3, 4, 5)), 4
    )
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert sheet.shape == (2 * 5 - 1, 4 * 6 - 1, 3)
    torch.testing.assert_close(
        torch.tensor(sheet[:4, :5]), x[0].reshape(3, 4, 5).movedim(0, -1)
    )


def sheet_of(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_models_are_rows(data):
    models = {"small": VAE(64, 2), "large": VAE(64, 5)}
    figure = plots.samples_by_model(models, data, 7)
    assert sheet_of(figure).shape == (3 * 9 - 1, 7 * 9 - 1)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [
        "data",
        "small",
        "large",
    ]
    figure = plots.interpolations_by_model(
        {"small": (models["small"], line), "circle": (models["large"], great_circle)},
        data,
        5,
    )
    assert sheet_of(figure).shape == (3 * 9 - 1, 7 * 9 - 1)
    # The baseline is the mean of the two data half-way.
    ends, middle = (
        [sheet_of(figure)[18:26, 9 * i : 9 * i + 8] for i in (0, 6)],
        sheet_of(figure)[18:26, 27:35],
    )
    np.testing.assert_allclose(middle, (ends[0] + ends[1]) / 2, atol=1e-6)


def test_restorations_show_corrupted_and_original():
    pairs = digits(transform=Corrupted(PixelErasure(0.9))).test
    lvm = DenoisingAutoencoder(64, 5, hidden=(8,))
    figure = plots.restorations(lvm, pairs, 4)
    rows = sheet_of(figure).reshape(3 * 9 - 1, -1)
    corrupted, clean = spread(pairs, 4).fixed().x
    np.testing.assert_allclose(rows[:8, :8], 1 - corrupted[0].reshape(8, 8), atol=1e-6)
    np.testing.assert_allclose(rows[18:, :8], 1 - clean[0].reshape(8, 8), atol=1e-6)
    with pytest.raises(ValueError, match=r"must be pairs \(corrupted, clean\)"):
        plots.restorations(lvm, digits().test)


def test_rows_of_different_lengths_raise():
    with pytest.raises(
        ValueError, match=r"as many pictures each; got \{'a': 2, 'b': 3\}"
    ):
        plots.picture_rows({"a": torch.zeros(2, 4), "b": torch.zeros(3, 4)}, (2, 2))


def test_planes_draw_points_over_background():
    figure = plots.planes(
        {"a": torch.randn(5, 2), "b": torch.randn(6, 2)}, torch.randn(9, 2)
    )
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert [len(axes.collections[1].get_offsets()) for axes in figure.axes] == [5, 6]


@pytest.mark.parametrize("name", ["$x_{", "$\\frac$", "a $ b", r"\mathdefault $"])
def test_dollar_signs_in_names_are_literal(name, tmp_path):
    figure = plots.curves(
        [1.0, 10.0],
        {name: [1.0, 2.0]},
        {name: [0.1, 0.1]},
        (name, "y"),
        name,
        log_x=True,
    )
    figure.axes[0].set_yscale("log")
    figure.savefig(tmp_path / "x.svg", bbox_inches="tight")
    assert figure.axes[0].get_title() == name


def test_traversal_moves_one_dimension_a_row(data):
    lvm = VAE(64, 3, encoder_hidden=(8,), decoder_hidden=(8,))
    figure = plots.traversal(lvm, data, dimensions=[2, 0], steps=3, reach=1.5)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["z3", "z1"]
    sheet = np.asarray(axes.images[0].get_array())
    z = vilvm.posterior_mean(lvm, data.subset(slice(0, 1)).fixed().x)["z"]
    z[0, 2] = 1.5
    last = 1 - lvm.decode(z).mean.detach().reshape(8, 8)
    np.testing.assert_allclose(sheet[:8, -8:], last, atol=1e-6)


def test_traversal_of_a_missing_dimension(data):
    with pytest.raises(ValueError, match="dimensions 0 to 1, not 2"):
        plots.traversal(VAE(64, 2), data, dimensions=[2])
