"""Paths between codes, compared with geometry."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.evaluation.interpolation import great_circle, interpolate, line
from vilvm.models.autoencoder import Autoencoder
from vilvm.models.vae import VAE


def test_both_paths_include_their_ends():
    a, b = torch.randn(2, 7, 5)
    for path in (
        line,
        great_circle,
        partial(great_circle, mean=torch.ones(5), scale_tril=2 * torch.eye(5)),
    ):
        way = path(a, b, 6)
        assert way.shape == (7, 6, 5)
        torch.testing.assert_close(way[:, 0], a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(way[:, -1], b, rtol=1e-5, atol=1e-5)


def test_great_circle_rotates_evenly_within_its_plane():
    a, b = torch.randn(2, 7, 5, dtype=torch.float64)
    way = great_circle(a, b, 9)
    length = torch.lerp(
        a.norm(dim=1)[:, None],
        b.norm(dim=1)[:, None],
        torch.linspace(0, 1, 9, dtype=torch.float64),
    )
    torch.testing.assert_close(way.norm(dim=-1), length)
    units = way / way.norm(dim=-1, keepdim=True)
    angles = (units[:, 1:] * units[:, :-1]).sum(-1).acos()
    total = torch.nn.functional.cosine_similarity(a, b).acos()
    torch.testing.assert_close(angles, (total / 8)[:, None].expand(7, 8))


def test_only_great_circle_keeps_the_length():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4000, 50)
    middles = {path: path(a, b, 3)[:, 1].norm(dim=1) for path in (line, great_circle)}
    for path, expected in (
        (great_circle, a.norm(dim=1)),
        (line, a.norm(dim=1) * math.sqrt(0.5)),
    ):
        found = middles[path]
        error = (found.var() / 4000 + expected.var() / 4000).sqrt()
        assert abs(found.mean() - expected.mean()) < 5 * error


def test_great_circle_of_gaussian_prior_is_whitened():
    a, b = torch.randn(2, 7, 3, dtype=torch.float64)
    mean, scale = (
        torch.tensor([1.0, -2.0, 0.5]).double(),
        torch.tensor([[2.0, 0, 0], [0.3, 1.0, 0], [-0.5, 0.2, 0.7]]).double(),
    )
    way = great_circle(a @ scale.T + mean, b @ scale.T + mean, 5, mean, scale)
    torch.testing.assert_close(way, great_circle(a, b, 5) @ scale.T + mean)


def test_undefined_great_circle_is_a_line():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    # Three pairs: opposite codes, a code at the centre, equal codes.
    b = torch.tensor([[-2.0, 0.0], [1.0, 2.0], [1.0, 1.0]])
    torch.testing.assert_close(great_circle(a, b, 5), line(a, b, 5))


def test_close_ends_keep_precision():
    a = torch.randn(7, 5)
    b = a + 1e-4 * torch.randn(7, 5)
    torch.testing.assert_close(
        great_circle(a, b, 5), line(a, b, 5), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "lvm", [VAE(data_dim=6, latent_dim=2), Autoencoder(data_dim=6, latent_dim=2)]
)
def test_interpolation_decodes_the_path(lvm):
    x = torch.bernoulli(torch.full((8, 6), 0.5))
    codes = vilvm.posterior_mean(lvm, x)["z"]
    expected = lvm.decode(great_circle(codes[:4], codes[4:], 5)).mean
    torch.testing.assert_close(
        interpolate(lvm, x[:4], x[4:], 5, great_circle), expected
    )


def test_invalid_interpolations_are_refused():
    with pytest.raises(
        ValueError, match="steps must be a whole number, at least 2; got 1"
    ):
        line(torch.zeros(1, 2), torch.zeros(1, 2), 1)
    with pytest.raises(
        ValueError, match=r"ends must be of one shape.*\(1, 2\) and \(2, 2\)"
    ):
        line(torch.zeros(1, 2), torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match=r"ends must be of one shape; got \(1, 6\) and \(2, 6\)"
    ):
        interpolate(VAE(data_dim=6), torch.zeros(1, 6), torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"codes must be of shape \(num_pairs, d\)"):
        great_circle(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(
        vilvm.ContractError,
        match=r"one latent, a vector for each datum; this one has \{'z': \(4,\)\}",
    ):
        interpolate(vilvm.Pair(model, guide), torch.zeros(2, 1), torch.zeros(2, 1))
