"""The axis of batches, the last batch that is left out, and errors of a batch or a record."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm._compile import graph
from vilvm.data import Data
from vilvm.training import compiled_step
from vilvm.training._batches import Batches


def over_time(x, plate="sequences"):
    """B random walks, x of shape (T, B), with one z for each sequence."""
    with pyro.plate(plate, x.shape[1]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(len(x)):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


def guide_over_time(x, plate="sequences"):
    with pyro.plate(plate, x.shape[1]):
        pyro.sample(
            "z", dist.Normal(pyro.param("m", torch.tensor(0.1)) * x.sum(0), 1.0)
        )


def timely():
    return vilvm.Pair(over_time, guide_over_time)


@pytest.mark.parametrize(
    ("shape", "batch_size"),
    [
        ((12, 5), 4),
        ((12, 4), 4),
        ((12, 12), 4),
        ((12, 3), 4),
        ((12, 1), 1),
        ((12, 2), 1),
        ((2, 2), 1),
        ((12, 5), 1),
    ],
)
def test_batches_of_time_steps_are_refused(shape, batch_size):
    with pytest.raises(
        vilvm.ContractError,
        match=r"cut along the first axis of the data, "
        r"and plate 'sequences' of Pair is not over it",
    ):
        vilvm.fit(timely(), torch.zeros(shape), steps=3, batch_size=batch_size)


def test_misleading_plate_name_data_is_refused():
    lvm = vilvm.Pair(
        partial(over_time, plate="data"), partial(guide_over_time, plate="data")
    )
    with pytest.raises(vilvm.ContractError, match=r"it has 4 data for 3 rows"):
        vilvm.fit(lvm, torch.zeros(12, 4), steps=3, batch_size=4)


def test_validation_in_parts_of_time_is_refused():
    with pytest.raises(
        vilvm.ContractError, match="plate 'sequences' of Pair is not over it"
    ):
        vilvm.fit(timely(), torch.zeros(3, 4), validation=torch.zeros(1003, 4), steps=3)


def test_time_major_sequences_are_trained_whole():
    assert vilvm.fit(timely(), torch.zeros(12, 4), steps=3).steps == 3


def over_rows(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], torch.ones(3)).to_event(1), obs=x)


def subsampled(x):
    with pyro.plate("data", 100, subsample=x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def guide_of(model):
    def guide(x):
        size, more = (len(x), {}) if model is over_rows else (100, {"subsample": x})
        with pyro.plate("data", size, **more):
            pyro.sample(
                "z", dist.Normal(pyro.param("m", torch.tensor(0.1)) * x[:, 0], 1.0)
            )

    return guide


@pytest.mark.parametrize("model", [over_rows, subsampled])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 99])
def test_plates_over_rows_are_trained(model, batch_size):
    assert (
        vilvm.fit(
            vilvm.Pair(model, guide_of(model)),
            torch.zeros(100, 3),
            steps=3,
            batch_size=batch_size,
        ).steps
        == 3
    )


def test_pair_of_fixed_batch_size_is_trained():
    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5)).expand(4)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, 0], 1.0))  # of four data only

    assert (
        vilvm.fit(
            vilvm.Pair(over_rows, guide), torch.zeros(12, 3), steps=6, batch_size=4
        ).steps
        == 6
    )


# A last batch of one datum
# ----------------------------------------------------------------------------------------


class Normalised(torch.nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.norm, self.encode = norm, torch.nn.Linear(3, 1)

    def model(self, x):
        over_rows(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(self.norm(x))[:, 0], 1.0))


def test_batch_normalisation_leaves_out_a_single_last_datum(capsys):
    lvm = Normalised(torch.nn.BatchNorm1d(3))
    fitted = vilvm.fit(lvm, torch.randn(11, 3), epochs=3, batch_size=5)
    assert fitted.steps == 6
    assert lvm.norm.num_batches_tracked == 6
    assert (
        "is left out, another one every epoch (11 data in batches of 5)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(("rows", "steps"), [(10, 2), (12, 3), (5, 1), (6, 1)])
def test_larger_batches_are_not_left_out(rows, steps):
    assert (
        vilvm.fit(
            Normalised(torch.nn.BatchNorm1d(3)),
            torch.randn(rows, 3),
            epochs=1,
            batch_size=5,
        ).steps
        == steps
    )


def test_left_out_datum_changes_every_epoch():
    batches = Batches(Data(torch.arange(6.0)), 5, 0, drop_single=True)
    taken = [set(batches(step).tolist()) for step in range(20)]
    assert batches.epoch_steps == 1
    assert all(len(t) == 5 for t in taken)
    assert set.union(*taken) == set(range(6))


def test_frozen_statistics_leave_nothing_out():
    lvm = Normalised(torch.nn.BatchNorm1d(3))
    lvm.norm.eval()
    assert vilvm.fit(lvm, torch.randn(11, 3), epochs=1, batch_size=5).steps == 3


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("always", [False, True])
def test_functional_batch_normalisation_is_named(monkeypatch, compile, always):
    monkeypatch.setattr(compiled_step, "machine_code", graph)

    def norm(x):
        return torch.nn.functional.batch_norm(
            x, torch.zeros(3), torch.ones(3), training=always or torch.is_grad_enabled()
        )

    with pytest.raises(
        vilvm.ContractError,
        match="Step 3: the batch holds one datum, for which batch normalisation has no statistics",
    ):
        vilvm.fit(
            Normalised(norm),
            torch.randn(11, 3),
            epochs=1,
            batch_size=5,
            compile=compile,
        )


def test_nan_statistics_of_one_datum_are_named():
    with pytest.raises(
        vilvm.NonFiniteLossError,
        match=r"Step 3 .*nan.*The batch holds one datum: .*choose a batch_size",
    ):
        vilvm.fit(
            Normalised(lambda x: (x - x.mean(0)) / (x - x.mean(0)).norm(dim=0)),
            torch.randn(11, 3),
            epochs=1,
            batch_size=5,
        )


# A record that fails
# ----------------------------------------------------------------------------------------


class Sturdy(Normalised):
    """Fails in evaluation mode, in the given way, after training."""

    def __init__(self, fault):
        super().__init__(lambda x: x)
        self.fault, self.trained = fault, False

    def guide(self, x):
        self.trained |= torch.is_grad_enabled()
        if self.trained and not torch.is_grad_enabled():
            x = self.fault(x)
        super().guide(x)


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda x: x[:, :2],
            r"^The guide fails on a batch of shape \(4, 3\).*mat1 and mat2",
        ),
        (lambda x: x.double(), r"two number types.*\.float\(\)"),
        (lambda x: {}[0], "KeyError: 0"),
    ],
)
def test_error_at_a_record_keeps_its_message(fault, message, nonfinite):
    with pytest.raises(vilvm.ContractError, match=message) as caught:
        vilvm.fit(
            Sturdy(fault),
            torch.randn(4, 3),
            steps=3,
            nonfinite=nonfinite,
            compile=False,
        )
    assert "learning rate" not in str(caught.value)


def test_nan_at_a_record_is_a_nonfinite_loss():
    lvm = Sturdy(lambda x: x * torch.nan)
    with pytest.raises(
        vilvm.NonFiniteLossError,
        match=r"After step 3, on the data of the record: .*site 'z' is nan.*learning rate",
    ):
        vilvm.fit(lvm, torch.randn(4, 3), steps=3, compile=False)
    fitted = vilvm.fit(
        Sturdy(lambda x: x * torch.nan),
        torch.randn(4, 3),
        steps=3,
        compile=False,
        nonfinite="skip",
    )
    assert fitted.history["rate"].tolist() == pytest.approx([torch.nan], nan_ok=True)
