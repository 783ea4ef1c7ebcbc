"""Figures of any model of one latent vector: they draw, at the size asked."""

import numpy as np
import pytest
import torch

import vilvm
from models.vae import VAE
from vilvm import report
from vilvm.datasets import digits


@pytest.fixture
def data():
    return digits().test


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_every_figure_draws(tmp_path, data, latent):
    lvm = VAE(64, latent, encoder_hidden=(8,), decoder_hidden=(8,))
    history = vilvm.fit(lvm, data, steps=100, batch_size=50).history
    figures = [
        report.reconstructions(lvm, data),
        report.prior_samples(lvm, data, 16),
        report.interpolations(lvm, data, pairs=2),
        report.elbo_curves(history),
        report.latent_scatter(lvm, data),
    ]
    if latent == 2:
        figures.append(report.manifold(lvm, data, side=5))
    for i, figure in enumerate(figures):
        path = tmp_path / f"{i}.png"
        figure.savefig(path)
        assert path.stat().st_size > 1000


def test_reconstructions_show_the_data(data):
    lvm = VAE(64, 2)
    axes = report.reconstructions(lvm, data, 4).axes[0]
    sheet = np.asarray(axes.images[0].get_array())
    assert sheet.shape == (2 * 9 - 1, 4 * 9 - 1)
    assert set(np.unique(sheet[:8, :8])) <= {0.0, 1.0}  # binarised data are black and white


def test_manifold_needs_two_dimensions(data):
    with pytest.raises(ValueError, match="needs 2"):
        report.manifold(VAE(64, 3), data)


def test_figures_need_one_vector_latent(data):
    with pytest.raises(ValueError, match="one latent"):
        report.figures._single({"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)})


def test_a_short_history_is_seen():
    lvm, x = VAE(6, 2), torch.zeros(8, 6)
    figure = report.elbo_curves(vilvm.fit(lvm, x, steps=3).history)
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)


@pytest.mark.parametrize("count", [2, 5])
def test_few_data_that_are_a_plain_tensor(count):
    lvm, x = VAE(6, 3), torch.zeros(count, 6)
    for figure in (report.interpolations(lvm, x), report.reconstructions(lvm, x), report.latent_scatter(lvm, x)):
        assert figure.axes


def test_one_datum_has_no_line_to_another():
    with pytest.raises(ValueError, match="at least two data; got 1"):
        report.interpolations(VAE(6, 3), torch.zeros(1, 6))


def test_colours_are_kept():
    x = torch.rand(4, 3 * 4 * 5)
    figure = report.reconstructions(VAE(60, 2, "gaussian"), vilvm.Data(x, image_shape=(3, 4, 5)), 4)
    sheet = np.asarray(figure.axes[0].images[0].get_array())
    assert sheet.shape == (2 * 5 - 1, 4 * 6 - 1, 3)
    torch.testing.assert_close(torch.tensor(sheet[:4, :5]), x[0].reshape(3, 4, 5).movedim(0, -1))
