"""check_lvm detects each fault that it documents."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from vilvm.lvm import model_of
from vilvm.testing import check_lvm


class Base(torch.nn.Module):
    """A small correct model, to which the tests below add faults."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.3))
        self.scale = torch.nn.Parameter(torch.tensor(-0.3))
        self.shift = torch.nn.Parameter(torch.tensor(0.1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.scale.exp()))


class Idle(Base):
    def __init__(self):
        super().__init__()
        self.idle = torch.nn.Parameter(torch.zeros(3))


class Mixing(Base):
    """Each datum's posterior depends on its position in the batch."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(self.slope * x + torch.arange(len(x)), self.scale.exp()),
            )


class Leaning(Base):
    """Each datum's posterior depends on the others of the batch."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(
                    self.slope * (x - x.mean() + x.std(correction=0)), self.scale.exp()
                ),
            )


class Leaking(Base):
    def guide(self, x):
        pyro.get_param_store()["leak"] = torch.zeros(())
        super().guide(x)


class Unseeded(Base):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            noise = torch.rand(len(x), generator=GENERATOR)
            pyro.sample("z", dist.Normal(self.slope * x + noise, self.scale.exp()))


class Forgetful(Base):
    """Keeps what it needs outside its state_dict."""

    def __init__(self):
        super().__init__()
        self.offset = torch.randn(())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z", dist.Normal(self.slope * x + self.offset, self.scale.exp())
            )


GENERATOR = torch.Generator().manual_seed(0)


def made(kind):
    return lambda: (kind(), torch.linspace(-1, 1, 5))


def test_a_correct_model_passes():
    check_lvm(made(Base))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Idle, "no finite gradient reaches \\['idle'\\]"),
        (Mixing, "order of the batch"),
        (Leaning, "other data of a batch"),
        (Leaking, "global parameter store"),
        (Unseeded, "one seed gives two results"),
        (Forgetful, "state_dict"),
    ],
)
def test_each_fault_is_detected(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_lvm(made(kind))


def test_plain_functions_must_be_wrapped():
    with pytest.raises(AssertionError, match="Pair"):
        check_lvm(
            lambda: (
                type("Plain", (), {"model": Base.model, "guide": Base.guide})(),
                torch.zeros(3),
            )
        )


class WithoutGuide(torch.nn.Module):
    """A module that is not run itself, and has a model only."""

    def model(self, x):
        pass


class WithNetwork(torch.nn.Module):
    """A module that is the model, with a network of the name "model"."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def forward(self, x):
        pass


def test_model_of_an_object_without_guide_is_found():
    without, network = WithoutGuide(), WithNetwork()
    assert model_of(without, "here") == without.model
    assert model_of(network, "here") is network
