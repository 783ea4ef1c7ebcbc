"""Steps that are taken without Python between them equal those taken one by one."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim.lr_scheduler import ExponentialLR

import vilvm
from vilvm._runtime.random import seeded
from vilvm.models import eight_schools
from vilvm.models.ppca import PPCA
from vilvm.objectives import Annealed
from vilvm.training import _loop
from vilvm.training._block import Block


@pytest.fixture
def blocks(monkeypatch):
    """How many steps each block had; blocks are as long as they may be."""
    taken = []

    def launch(self, *given, old=Block.launch):
        results = old(self, *given)
        taken.append(len(results))
        return results

    monkeypatch.setattr(Block, "launch", launch)
    monkeypatch.setattr(_loop, "_SECONDS_AT_ONCE", 1e3)
    return taken


def shared():
    return eight_schools.tiny()


def amortised():
    x = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    return PPCA(data_dim=5, latent_dim=2), x


def trained(make, **options):
    """The parameters and the history of a run."""
    with seeded(0):
        lvm, x = make()
    done = vilvm.fit(lvm, x, compile=True, seed=3, **options)
    return lvm.state_dict(), done.history["elbo"].tolist()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (shared, {"steps": 120}),
        (amortised, {"epochs": 6, "batch_size": 16}),
        (
            amortised,
            {
                "epochs": 6,
                "batch_size": 16,
                "scheduler": partial(ExponentialLR, gamma=0.99),
            },
        ),
        (
            shared,
            {"steps": 120, "objective": lambda: Annealed(Trace_ELBO(), warmup=50)},
        ),
    ],
    ids=["whole data", "batches", "scheduler", "annealed"],
)
def test_blocks_are_exactly_the_single_steps(make, options, blocks, monkeypatch):
    def run():
        own = dict(options)
        if "objective" in own:
            own["objective"] = own["objective"]()
        return trained(make, **own)

    found = run()
    assert max(blocks) > 3
    count = len(blocks)
    monkeypatch.setattr(_loop.Loop, "_launched_together", None)
    monkeypatch.setattr("vilvm.training._run.StepInputs.stacked", lambda *_: None)
    expected = run()
    assert len(blocks) == count
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_resumed_run_is_exactly_the_uninterrupted_one(blocks, tmp_path):
    whole = trained(shared, steps=400)
    trained(shared, steps=150, run_dir=tmp_path / "run")
    resumed = trained(shared, steps=400, run_dir=tmp_path / "run", resume=True)
    torch.testing.assert_close(resumed[0], whole[0], rtol=0, atol=0)
    assert max(blocks) > 40


class Rare(torch.nn.Module):
    """The loss of a batch with a number below -3 is not finite."""

    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor(0.0))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.log(x + 3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m, 1.0))


def test_run_returns_to_a_step_that_is_not_finite(blocks):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).clamp(-2.9, 3)
    x[::40] = -4.0
    ends = []
    for compile in (False, True):
        lvm = Rare()
        done = vilvm.fit(
            lvm, x, steps=160, batch_size=10, compile=compile, nonfinite="skip"
        )
        ends.append((done.skipped, done.history["skipped"].tolist(), lvm.m.item()))
    assert blocks
    assert ends[1][:2] == ends[0][:2]
    assert ends[0][0] > 25
    assert ends[1][2] == pytest.approx(ends[0][2], rel=1e-4)
