"""Arguments that depend on the step, and a hook after it: eager, compiled, killed and resumed."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

import vilvm
from vilvm._compile import graph
from vilvm.objectives import Annealed
from vilvm.training import compiled_step

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)) + 1


class Line(torch.nn.Module):
    """z ~ N(prior, 1), x ~ N(w z, 1), the latent's terms times beta."""

    def __init__(self):
        super().__init__()
        self.w, self.m = (
            torch.nn.Parameter(torch.full((3,), 0.5)),
            torch.nn.Parameter(torch.tensor(0.1)),
        )

    def model(self, x, beta=1.0, prior=0.0):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(prior, 1.0))
            pyro.sample("x", dist.Normal(z[..., None] * self.w, 1.0).to_event(1), obs=x)

    def guide(self, x, beta=1.0, prior=0.0):
        with pyro.plate("data", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", dist.Normal(self.m * x.sum(-1), 0.5))


def trained(lvm=None, x=X[:20], steps=40, **options):
    lvm = Line() if lvm is None else lvm
    fitted = vilvm.fit(lvm, x, **{"steps": steps, "batch_size": 10, **options})
    return lvm.state_dict(), fitted


def close(first, second):
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-6)


def warmed(step):
    return {"beta": max(1e-6, min(1.0, step / 20))}


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_annealed_argument_equals_annealed_objective(monkeypatch, compile):
    monkeypatch.setattr(compiled_step, "machine_code", graph)
    found, _ = trained(arguments=warmed, compile=compile)
    expected, _ = trained(objective=Annealed(Trace_ELBO(), 20), compile=compile)
    close(expected, found)
    assert not torch.equal(found["m"], trained()[0]["m"])


def test_arguments_are_inputs_of_one_program(monkeypatch, capsys):
    programs, options = (
        [],
        {
            "arguments": lambda step: {
                "beta": 0.1 + step / 50,
                "prior": torch.tensor(step / 40),
            }
        },
    )
    monkeypatch.setattr(
        compiled_step,
        "machine_code",
        lambda *given: programs.append(1) or graph(*given),
    )
    eager, _ = trained(x=X[:20], steps=60, compile=False, **options)
    found, _ = trained(x=X[:20], steps=60, compile=True, **options)
    assert programs == [1]
    assert "eagerly" not in capsys.readouterr().out
    close(eager, found)


def test_annealed_prior_has_the_value_of_its_step():
    """With a guide of one point the loss has a closed form; its prior term depends on the step."""

    def model(x, prior=2.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, prior=2.0):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.Normal(
                    pyro.param("m", torch.tensor(0.0, dtype=x.dtype)) + 0 * x, 1e-9
                ),
            )

    lvm, x, m = (
        vilvm.Pair(model, guide),
        torch.linspace(-1, 1, 5, dtype=torch.float64),
        0.0,
    )
    vilvm.fit(
        lvm,
        x,
        steps=8,
        arguments=lambda step: {"prior": 0.1 * step},
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    for step in range(8):
        # gradient of (m − prior)² / 2 and of the mean of (m − x)² / 2
        m -= 0.1 * ((m - 0.1 * step) + (m - 0.0))
    assert lvm.pyro_params["m"].item() == pytest.approx(m, abs=1e-8)


def test_records_use_default_arguments():
    still = partial(torch.optim.SGD, lr=0.0)
    _, fitted = trained(
        steps=150,
        validation=X,
        arguments=lambda step: {"prior": step / 10},
        optimizer=still,
        batch_size=24,
    )
    _, plain = trained(steps=150, validation=X, optimizer=still, batch_size=24)
    assert (
        fitted.history["validation_elbo"].tolist()
        == plain.history["validation_elbo"].tolist()
    )
    assert fitted.history["elbo"][-1] < plain.history["elbo"][-1] - 10


@pytest.mark.parametrize(
    "objective",
    [
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=2),
        Trace_ELBO(num_particles=3),
    ],
    ids=lambda o: type(o).__name__,
)
def test_every_objective_passes_arguments_on(objective):
    seen = []

    class Spy(Line):
        def guide(self, x, beta=1.0, prior=0.0):
            if torch.is_grad_enabled():
                seen.append(float(beta))
            super().guide(x, beta, prior)

    trained(
        Spy(),
        steps=3,
        arguments=lambda step: {"beta": step + 1},
        objective=objective,
        compile=False,
    )
    assert sorted(set(seen)) == [1.0, 2.0, 3.0]


def test_autoguide_ignores_arguments():
    def model(x, prior=0.0):
        mu = pyro.sample("mu", dist.Normal(prior, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    lvm = vilvm.Pair(model, AutoNormal(model))
    assert (
        vilvm.fit(lvm, X[:, 0], steps=5, arguments=lambda step: {"prior": step}).steps
        == 5
    )


class Killed(Exception):
    pass


def test_killed_run_resumes_to_the_undisturbed_one(tmp_path):
    def dying(at):
        fatal = [at]  # a list may change; another number would make another function

        def arguments(step):
            if step in fatal:
                raise Killed
            return warmed(step)

        return arguments

    def clip(lvm, step):
        lvm.w.clamp_(max=0.53)

    options = {
        "checkpoint_seconds": 0.0,
        "resume": True,
        "after_step": clip,
        "compile": False,
    }
    whole, _ = trained(arguments=dying(None), run_dir=tmp_path / "whole", **options)
    for step in (2, 17):
        with pytest.raises(Killed):
            trained(arguments=dying(step), run_dir=tmp_path / "killed", **options)
    found, fitted = trained(
        arguments=dying(None), run_dir=tmp_path / "killed", **options
    )
    assert fitted.steps == 40
    assert all(torch.equal(whole[n], found[n]) for n in whole)


def test_run_with_other_arguments_is_not_resumed(tmp_path):
    trained(steps=3, arguments=warmed, run_dir=tmp_path)
    with pytest.raises(
        vilvm.CheckpointError, match=r"arguments = \['beta'\], this run has None"
    ):
        trained(steps=5, resume=True, run_dir=tmp_path)


def test_hook_runs_after_every_applied_step():
    taken = []

    def poisoned(step):
        return {"prior": float("nan") if step in (2, 5) else 0.0}

    _, fitted = trained(
        steps=8,
        arguments=poisoned,
        nonfinite="skip",
        after_step=lambda lvm, step: taken.append(step),
    )
    assert taken == [1, 2, 4, 5, 7, 8]
    assert fitted.skipped == 2


@pytest.mark.parametrize("compile", [False, True])
def test_projection_after_each_step_is_projected_descent(monkeypatch, capsys, compile):
    monkeypatch.setattr(compiled_step, "machine_code", graph)

    class Point(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros_like(self.m), 1e6).to_event(1)
                )
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.m + 0 * x, 1e-9).to_event(1))

    def project(lvm, step):
        lvm.m /= lvm.m.norm().clamp(min=1.0)  # onto the unit disc

    lvm, x = Point(), torch.tensor([[3.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    momentum = partial(torch.optim.SGD, lr=0.2, momentum=0.5)
    vilvm.fit(lvm, x, steps=30, after_step=project, compile=compile, optimizer=momentum)
    m = speed = torch.zeros(2, dtype=torch.float64)
    for _ in range(30):
        speed = 0.5 * speed + (m - x.mean(0))
        m = m - 0.2 * speed
        m = m / m.norm().clamp(min=1.0)
    assert lvm.m.tolist() == pytest.approx(m.tolist(), abs=1e-6)
    assert lvm.m.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert "eagerly" not in capsys.readouterr().out


def test_site_of_a_bad_argument_is_named():
    with pytest.raises(
        vilvm.NonFiniteLossError, match=r"Step 4 .*log-prior of site 'z' is nan"
    ):
        trained(arguments=lambda step: {"prior": float("nan") if step == 3 else 0.0})


def without(x):
    with pyro.plate("data", len(x)):
        pyro.sample(
            "z", dist.Normal(pyro.param("m", torch.tensor(0.0)) + 0 * x[:, 0], 1.0)
        )


def needing(x, beta):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, beta))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": 3}, "arguments must be a function"),
        ({"after_step": 3}, "after_step must be a function"),
        (
            {"arguments": lambda step: 0.5},
            "must return a dict of numbers and tensors by name; got a float",
        ),
        (
            {"arguments": lambda step: {"beta": "large"}},
            "beta = 'large'; give a number or a tensor",
        ),
        (
            {"arguments": warmed, "lvm": vilvm.Pair(Line().model, without)},
            r"the guide of Pair must take \['beta'\] after the batch",
        ),
        (
            {"arguments": warmed, "lvm": vilvm.Pair(needing, without)},
            r"the model of Pair must .*each with a default",
        ),
        ({"arguments": lambda step: {"gamma": 1.0}}, r"must take \['gamma'\]"),
    ],
)
def test_bad_arguments_get_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        trained(**options)


@pytest.mark.parametrize("change", ["replaced", "added", "unfrozen"])
def test_parameter_unknown_to_the_optimizer_is_refused(change):
    """It would stay untrained without a message."""
    lvm = torch.nn.Module()
    lvm.slope, lvm.offset = (
        torch.nn.Parameter(torch.tensor(0.1)),
        torch.nn.Parameter(torch.tensor(0.0), requires_grad=False),
    )
    lvm.model = lambda x: line(x, 0.0)
    lvm.guide = lambda x: line(x, lvm.slope * x + lvm.offset, observed=False)

    def callback(event):
        if change == "unfrozen":
            lvm.offset.requires_grad_(True)
        else:
            setattr(
                lvm,
                "slope" if change == "replaced" else "other",
                torch.nn.Parameter(torch.tensor(0.2)),
            )

    name = {"replaced": "slope", "added": "other", "unfrozen": "offset"}[change]
    with pytest.raises(
        vilvm.ContractError,
        match=f"After step 50: the optimizer does not know parameter '{name}'",
    ):
        vilvm.fit(lvm, torch.randn(8), steps=51, callbacks=[callback])


def line(x, mean, observed=True):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        if observed:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
