"""In-place changes of the user's data, and seeding of torch's generators, are refused.

Callbacks may draw.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm._runtime.random import seeded
from vilvm._runtime.unchanged import not_seeded
from vilvm.data import Data
from vilvm.diagnostics.pareto_k import pareto_k
from vilvm.lvm import ContractError

NOTHING = lambda *_: None  # noqa: E731


class Line(torch.nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), after a side effect in the model, in the guide, or in training
    only.
    """

    def __init__(self, in_model=NOTHING, in_guide=NOTHING, in_training=NOTHING):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.1))
        self.do = in_model, in_guide, in_training

    def model(self, x, beta=1.0):
        self.do[0](x)
        self.do[2](x) if self.training else None
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, beta), obs=x)

    def guide(self, x, beta=1.0):
        self.do[1](x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.7))


@dataclass(frozen=True)
class Shift:
    fresh: bool = True
    name = "shift"

    def __call__(self, batch):
        return batch.add_(1.0)


def data():
    return torch.linspace(-1, 1, 12)


def fit(lvm, x, steps=3, **options):
    return vilvm.fit(lvm, x, steps=steps, progress=False, **options)


def shift(x):
    x += 1.0


def seed(x):
    torch.manual_seed(0)


CALLS = {
    "fit": fit,
    "fit in batches": lambda lvm, x: fit(lvm, x, batch_size=4),
    "evaluate": lambda lvm, x: vilvm.evaluate(lvm, x, num_samples=2, progress=False),
    "log_weights": vilvm.log_weights,
    "posterior": vilvm.posterior,
    "pareto_k": lambda lvm, x: pareto_k(lvm, x, num_samples=100),
    "sample": lambda lvm, x: vilvm.sample(lvm, 2, like=x),
}


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (c, p)
        for c in CALLS
        for p in ("model", "guide")
        if (c, p) != ("sample", "guide")
    ],
)
@pytest.mark.parametrize(
    ("do", "words"),
    [(shift, r"changes its batch in place \(x\)"), (seed, "seeds torch's generators")],
)
def test_changing_the_batch_or_seeding_is_refused(call, part, do, words):
    with seeded(0), pytest.raises(ContractError, match=f"The {part} .*{words}"):
        CALLS[call](Line(**{f"in_{part}": do}), data())


def test_tensors_of_a_batch_are_named():
    class Two(Line):
        def model(self, batch):
            batch["u"][1].mul_(2.0)
            super().model(batch["x"])

        def guide(self, batch):
            super().guide(batch["x"])

    with pytest.raises(
        ContractError, match=r"The model changes its batch in place \(x\['u'\]\[1\]\)"
    ):
        vilvm.log_weights(Two(), {"x": data(), "u": (data(), data())})


@pytest.mark.parametrize("fresh", [True, False])
def test_a_transform_in_place_is_refused(fresh):
    with pytest.raises(
        ContractError, match=r"The transform Shift changes its batch in place \(x\)"
    ):
        vilvm.evaluate(
            Line(), Data(data(), transform=Shift(fresh)), num_samples=2, progress=False
        )
    with pytest.raises(
        ContractError, match=r"The transform Shift changes its batch in place \(x\)"
    ):
        fit(Line(), Data(data(), transform=Shift(fresh)))


@pytest.mark.parametrize(
    "name", ["arguments", "after_step", "callbacks", "in_training"]
)
def test_callables_of_fit_may_not_change_data(name):
    x = data()
    held_out = data()
    options = {
        "arguments": {
            "arguments": lambda step: {"beta": float(x.add_(1.0).mean().abs())}
        },
        "after_step": {"after_step": lambda lvm, step: x.add_(1.0)},
        "callbacks": {
            "callbacks": [lambda event: bool(held_out.add_(1.0).mean() > 1e9)]
        },
        "in_training": {},
    }[name]
    # autograd raises its own error
    lvm = Line(in_training=shift) if name == "in_training" else Line()
    words = {
        "arguments": "The function arguments changes the data",
        "after_step": "The function after_step changes the data",
        "callbacks": "The callback test_callables_of_fit_may_not_change_data.<locals>.<lambda> "
        "changes the data",
        "in_training": "In training mode, the model or the guide changes its batch",
    }
    with pytest.raises(ContractError, match=words[name]):
        fit(lvm, x, validation=held_out, **options)


@pytest.mark.parametrize("where", ["model", "after_step", "transform"])
def test_seeding_in_a_step_is_refused(where):
    @dataclass(frozen=True)
    class Seeds:
        name = "seeds"
        fresh = True

        def __call__(self, batch):
            torch.manual_seed(5)
            return batch + torch.randn(len(batch))

    lvm = (
        Line(in_training=lambda x: torch.manual_seed(5)) if where == "model" else Line()
    )
    x = Data(data(), transform=Seeds()) if where == "transform" else data()
    options = (
        {"after_step": lambda lvm, step: torch.manual_seed(5) and None}
        if where == "after_step"
        else {}
    )
    with pytest.raises(ContractError, match="seeds torch's generators"):
        fit(lvm, x, **options)


def test_check_for_seeding_changes_no_draw():
    with seeded(7):
        expected = torch.randn(1000), torch.get_rng_state()
        first = torch.initial_seed()
    with seeded(7), not_seeded("model", None):
        torch.rand(3)
        assert torch.initial_seed() != first
        with seeded(1):
            torch.rand(3)
    with seeded(7):
        with not_seeded("model", None):
            found = torch.randn(1000)
        assert torch.equal(found, expected[0])
        assert torch.equal(torch.get_rng_state(), expected[1])
        assert torch.initial_seed() == first


def test_harmless_changes_are_accepted():
    def fills(x):
        x.clone().add_(1.0)
        torch.zeros(3).fill_(1.0)

    assert (
        fit(Line(fills, fills, fills), data(), callbacks=[lambda event: None]).steps
        == 3
    )
    with torch.inference_mode():
        x = data()
    assert (
        vilvm.evaluate(Line(), x, num_samples=2, progress=False).protocol["num_data"]
        == 12
    )


def trained(compile=False, **options):
    lvm = Line()
    fitted = fit(lvm, data(), steps=120, batch_size=4, compile=compile, **options)
    return lvm.slope.item(), fitted.history["elbo"].tolist()


def test_a_callback_that_draws_or_seeds_changes_nothing():
    drawn = []

    def draws(event):
        drawn.append(torch.randn(3))

    assert trained() == trained(
        callbacks=[draws, lambda event: bool(torch.manual_seed(3)) and False, draws]
    )
    assert len(drawn) == 6
    assert torch.equal(drawn[0], drawn[1])  # at one record,
    assert not torch.equal(drawn[0], drawn[2])  # and at the next


def test_after_step_draws_differ_and_are_recorded(tmp_path):
    def noisy(drawn):
        def after_step(lvm, step):
            drawn.append(torch.randn(()).item())
            lvm.slope.add_(0.01 * drawn[-1])

        return after_step

    first, second, resumed = [], [], []
    whole = trained(after_step=noisy(first))
    assert whole == trained(after_step=noisy(second))
    assert first == second
    assert len(set(first)) == 120
    fit(
        Line(),
        data(),
        steps=70,
        batch_size=4,
        compile=False,
        run_dir=tmp_path,
        after_step=noisy(resumed),
    )
    parts = trained(run_dir=tmp_path, resume=True, after_step=noisy(resumed))
    assert parts[0] == whole[0]
    assert resumed == first
