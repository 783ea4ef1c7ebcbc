"""Batches of several kinds in turn: their order and steps; a killed or compiled run equals the
undisturbed one.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

import vilvm
from vilvm._compile import graph
from vilvm._runtime.distributed import ProcessGroup
from vilvm.training import compiled_step
from vilvm.training._batches import Batches, batches_of


class Mixture(torch.nn.Module):
    """x ~ N(±1 by y, 1) scaled by w, y ~ Bernoulli(π), which is observed in labelled batches and
    summed over in the others.
    """

    def __init__(self):
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(0.3))
        self.locs = torch.nn.Parameter(torch.tensor([-1.0, 0.5]))

    @config_enumerate
    def model(self, batch):
        with pyro.plate("data", len(batch["x"])):
            y = pyro.sample("y", dist.Bernoulli(logits=self.logit), obs=batch.get("y"))
            pyro.sample("x", dist.Normal(self.locs[y.long()], 1.0), obs=batch["x"])

    def guide(self, batch):
        pass

    def loss(self, batch):
        """The exact loss per datum."""
        log_y = torch.nn.functional.logsigmoid(torch.stack([-self.logit, self.logit]))
        joint = log_y + dist.Normal(self.locs, 1.0).log_prob(batch["x"][:, None])
        if "y" in batch:
            return -joint.gather(1, batch["y"].long()[:, None]).mean()
        return -joint.logsumexp(1).mean()


def halves(unlabelled=80, labelled=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(unlabelled + labelled, generator=generator)
    y = torch.bernoulli(torch.full((labelled,), 0.7), generator=generator)
    return {"x": x[:unlabelled]}, {"x": x[unlabelled:], "y": y}


ENUMERATED = {"objective": TraceEnum_ELBO(max_plate_nesting=1)}


def test_epoch_spreads_all_sources_evenly():
    data = vilvm.Interleaved(torch.arange(80.0), torch.arange(100.0, 123.0))
    batches = batches_of(data, 10, 0, ProcessGroup(), drop_single=False)
    assert batches.epoch_steps == 11
    for epoch in range(3):
        taken = [batches(epoch * 11 + i) for i in range(11)]
        assert torch.cat(taken).sort().values.tolist() == [
            *map(float, range(80)),
            *map(float, range(100, 123)),
        ]
        labelled = [i for i, batch in enumerate(taken) if batch.max() >= 100]
        assert labelled == [1, 5, 9]
        assert [batches.count(epoch * 11 + i) for i in range(11)] == list(
            map(len, taken)
        )
    assert not torch.equal(batches(0), batches(11))


def test_single_source_equals_plain_data():
    x = torch.arange(23.0)
    turns, alone = (
        batches_of(vilvm.Interleaved(x), 5, 3, ProcessGroup(), drop_single=False),
        Batches(vilvm.Data(x), 5, 3),
    )
    assert all(torch.equal(turns(step), alone(step)) for step in range(20))


def test_steps_equal_exact_losses_in_turn():
    unlabelled, labelled = halves()
    lvm, by_hand = Mixture(), Mixture()
    descend = partial(torch.optim.SGD, lr=0.2)
    fitted = vilvm.fit(
        lvm,
        vilvm.Interleaved(unlabelled, labelled),
        steps=30,
        optimizer=descend,
        **ENUMERATED,
    )
    optimizer, losses = descend(by_hand.parameters()), []
    for step in range(30):  # each source is one batch
        optimizer.zero_grad()
        loss = by_hand.loss(labelled if step % 2 else unlabelled)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert lvm.locs.tolist() == pytest.approx(by_hand.locs.tolist(), rel=1e-5)
    assert lvm.logit.item() == pytest.approx(by_hand.logit.item(), rel=1e-5)
    assert fitted.history[-1].elbo == pytest.approx(-sum(losses) / 30, rel=1e-5)
    assert fitted.protocol["num_data"] == 100


@pytest.mark.parametrize("source", [0, 1])
def test_validation_data_may_be_of_any_kind(source):
    data, (held, _) = vilvm.Interleaved(*halves()), halves(40)
    held_out = held if source == 0 else halves(8, 30)[1]
    still = partial(torch.optim.SGD, lr=0.0)
    lvm = Mixture()
    fitted = vilvm.fit(
        lvm, data, steps=60, validation=held_out, optimizer=still, **ENUMERATED
    )
    assert fitted.history["validation_elbo"].tolist() == pytest.approx(
        [-lvm.loss(held_out).item()] * 2, rel=1e-5
    )


class Halves(torch.nn.Module):
    """A classifier q(y | x) that labelled batches do not train, and a code for each datum."""

    def __init__(self):
        super().__init__()
        self.classify, self.encode, self.decode = (
            torch.nn.Linear(3, 1),
            torch.nn.Linear(3, 2),
            torch.nn.Linear(2, 3),
        )
        self.shift = torch.nn.Parameter(torch.ones(3))

    def model(self, batch):
        with pyro.plate("data", len(batch["x"])):
            y = pyro.sample("y", dist.Bernoulli(0.5), obs=batch.get("y"))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(self.decode(z) + y[..., None] * self.shift, 1.0).to_event(
                    1
                ),
                obs=batch["x"],
            )

    def guide(self, batch):
        with pyro.plate("data", len(batch["x"])):
            if "y" not in batch:
                pyro.sample("y", dist.Bernoulli(logits=self.classify(batch["x"])[:, 0]))
            pyro.sample("z", dist.Normal(self.encode(batch["x"]), 0.5).to_event(1))


def pictures():
    x = torch.randn(53, 3, generator=torch.Generator().manual_seed(1))
    return vilvm.Interleaved({"x": x[:30]}, {"x": x[30:], "y": (x[30:, 0] > 0).float()})


class Killed(Exception):
    pass


def dies_at(step):
    def after(lvm, taken):
        if taken == step:
            raise Killed

    return after


def trained(steps=40, model=Halves, **options):
    torch.manual_seed(2)
    lvm = model()
    fitted = vilvm.fit(lvm, pictures(), steps=steps, batch_size=10, **options)
    return lvm.state_dict(), fitted


def test_killed_run_resumes_to_the_undisturbed_one(tmp_path):
    options = {"checkpoint_seconds": 0.0, "resume": True}
    whole, _ = trained(after_step=dies_at(None), run_dir=tmp_path / "whole", **options)
    for step in (3, 17):
        with pytest.raises(Killed):
            trained(after_step=dies_at(step), run_dir=tmp_path / "killed", **options)
    found, fitted = trained(
        after_step=dies_at(None), run_dir=tmp_path / "killed", **options
    )
    assert fitted.steps == 40
    assert all(torch.equal(whole[n], found[n]) for n in whole)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.Adam, lr=1e-2),
        pytest.param(partial(torch.optim.SGD, lr=1e-2), marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_equal_eager_steps(monkeypatch, capsys, optimizer):
    programs = []
    monkeypatch.setattr(
        compiled_step,
        "machine_code",
        lambda *given: programs.append(1) or graph(*given),
    )
    eager, _ = trained(compile=False, optimizer=optimizer)
    found, fitted = trained(compile=True, optimizer=optimizer)
    assert len(programs) == 3  # unlabelled, labelled, and the last three labelled
    assert fitted.compile_seconds > 0
    assert "eagerly" not in capsys.readouterr().out
    for name, value in eager.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        eager["classify.weight"], trained(steps=1)[0]["classify.weight"]
    )


def test_kinds_of_one_shape_have_own_programs(monkeypatch, capsys):
    """Batches that differ only by a name are of different kinds."""
    monkeypatch.setattr(compiled_step, "machine_code", graph)

    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.zeros(()))

        def model(self, batch):
            (name, x), *_ = batch.items()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z if name == "raw" else 5 * z, 1.0), obs=x)

        def guide(self, batch):
            with pyro.plate("data", len(next(iter(batch.values())))):
                pyro.sample("z", dist.Normal(self.m, 0.1))

    def run(compile):
        lvm, x = Named(), torch.linspace(1, 3, 8)
        vilvm.fit(
            lvm,
            vilvm.Interleaved({"raw": x}, {"scaled": x}),
            steps=20,
            compile=compile,
            optimizer=partial(torch.optim.SGD, lr=0.02),
        )
        return lvm.m.item()

    assert run(True) == pytest.approx(run(False), rel=1e-5)
    assert "eagerly" not in capsys.readouterr().out


def test_records_evaluate_the_first_source():
    """Rate and distortion are those of the first source, whichever batch came last."""
    seen = []

    class Watching(Halves):
        def guide(self, batch):
            if not torch.is_grad_enabled():
                seen.append("y" in batch)
            super().guide(batch)

    torch.manual_seed(2)
    lvm, looks = Watching(), []
    vilvm.fit(
        lvm,
        pictures(),
        steps=47,
        batch_size=10,
        callbacks=[lambda e: looks.append(seen[-1])],
    )
    assert looks == [False] * len(looks)
    assert looks


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: vilvm.Interleaved(), "at least one source"),
        (lambda: vilvm.Interleaved(torch.zeros(3), "b"), "source 2: holds no tensor"),
        (
            lambda: vilvm.Interleaved(torch.zeros(3), torch.tensor([torch.nan])),
            "source 2: holds NaN",
        ),
        (
            lambda: vilvm.evaluate(Mixture(), vilvm.Interleaved(torch.zeros(3))),
            "only fit trains on; pass one of its sources",
        ),
        (
            lambda: vilvm.fit(
                Mixture(), vilvm.Interleaved(*halves()), steps=1, objective=Trace_ELBO()
            ),
            "'y' is marked for enumeration",
        ),
        (
            lambda: vilvm.fit(
                Mixture(),
                vilvm.Interleaved({"x": torch.zeros(3), "y": torch.zeros(2)}),
                steps=1,
                batch_size=2,
            ),
            r"x\['x'\] has 3 rows and x\['y'\] has 2, 1 fewer",
        ),
    ],
)
def test_invalid_sources_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
