"""KL warm-up: the weight, the weighted loss, and the warning if the warm-up never completes."""

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import vilvm
from vilvm._runtime.random import seeded
from vilvm.models.vae import tiny
from vilvm.objectives import Annealed


@pytest.mark.parametrize("inner", [Trace_ELBO, TraceMeanField_ELBO])
def test_loss_is_distortion_and_weighted_rate(inner):
    lvm, x = tiny()
    objective = Annealed(inner(), warmup=10)
    objective.step = 3
    with seeded(0):
        annealed = objective.differentiable_loss(lvm.model, lvm.guide, x)
    with seeded(0):
        full = inner().differentiable_loss(lvm.model, lvm.guide, x)
    with seeded(0):
        z = lvm.encoder(x)
        mean, scale = z[:, :2], (z[:, 2:] / 2).exp()
        draw = torch.distributions.Normal(mean, scale).rsample()
        distortion = -lvm.decode(draw).log_prob(x).sum()
    torch.testing.assert_close(
        annealed, distortion + 0.3 * (full - distortion), rtol=1e-4, atol=1e-4
    )


def test_weight_rises_to_one():
    objective = Annealed(Trace_ELBO(), warmup=4, start=0.2)
    lvm, x = tiny()
    weights = []
    for _ in range(6):
        weights.append(objective.weight)
        objective.differentiable_loss(lvm.model, lvm.guide, x)
    assert weights == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_training_shorter_than_the_warmup_warns():
    lvm, x = tiny()
    with pytest.warns(UserWarning, match="never becomes the ELBO"):
        vilvm.fit(lvm, x, steps=5, objective=Annealed(Trace_ELBO(), warmup=10))


def test_step_is_kept_in_a_checkpoint(tmp_path):
    lvm, x = tiny()
    vilvm.fit(
        lvm, x, steps=4, objective=Annealed(Trace_ELBO(), warmup=4), run_dir=tmp_path
    )
    objective = Annealed(Trace_ELBO(), warmup=4)
    vilvm.fit(lvm, x, steps=6, objective=objective, run_dir=tmp_path, resume=True)
    assert objective.step == 6


@pytest.mark.parametrize("arguments", [{"warmup": 0}, {"warmup": 5, "start": 2.0}])
def test_bad_arguments_raise(arguments):
    with pytest.raises(ValueError, match="Annealed"):
        Annealed(Trace_ELBO(), **arguments)
