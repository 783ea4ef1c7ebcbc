"""A tracker receives settings and records once each, and changes nothing.

Each adapter writes with its real library, on disk or offline.
"""

import json
import math
import os
import signal

import pytest
import torch

import vilvm
from vilvm.models.ppca import PPCA
from vilvm.trackers import MLflow, TensorBoard, Tracker, WandB

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


class Kept:
    """A tracker that keeps what it receives."""

    def __init__(self):
        self.calls = []

    def settings(self, values):
        torch.rand(1)  # a draw, which must not affect the run
        self.calls.append(("settings", dict(values)))

    def metrics(self, step, values):
        torch.rand(1)
        self.calls.append((step, dict(values)))

    def figure(self, name, figure):
        self.calls.append((name, figure))


def train(tracker, steps=120, **options):
    torch.manual_seed(0)
    lvm = PPCA(4, 2)
    return lvm, vilvm.fit(
        lvm, X, steps=steps, batch_size=20, tracker=tracker, **options
    )


def test_tracker_receives_settings_and_records():
    kept = Kept()
    _, fitted = train(kept, validation=X, patience=9, clip=1.0)
    (_, settings), *records = kept.calls
    assert settings["batch_size"] == 20
    assert settings["steps"] == 120
    assert settings["epochs"] == 40
    assert settings["patience"] == 9
    assert settings["validate_every"] == 17  # epochs of 3 steps
    assert settings["clip"] == 1.0
    assert settings["lvm"] == "PPCA"
    assert settings["optimizer"].startswith("Adam(")
    assert all(isinstance(v, str | int | float | None) for v in settings.values())
    assert [step for step, _ in records] == fitted.history["step"].tolist()
    for (_, values), record in zip(records, fitted.history, strict=True):
        assert values["validation_elbo"] == record.validation_elbo
        assert values["epoch"] == record.epoch
        assert "step" not in values


def test_numbers_that_are_not_finite_are_left_out():
    kept = Kept()
    train(kept, 50)
    values = kept.calls[-1][1]
    assert "validation_elbo" not in values
    assert all(map(math.isfinite, values.values()))


def test_tracker_does_not_change_the_run():
    tracked, first = train(Kept())
    plain, second = train(None)
    assert first.history["elbo"].tolist() == second.history["elbo"].tolist()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, tracked.state_dict()[name])


def test_resumed_run_sends_later_records_only(tmp_path):
    kept = Kept()

    def interrupt(lvm, step):
        if step == 80:
            os.kill(os.getpid(), signal.SIGINT)

    for tracker in (None, kept):
        train(tracker, after_step=interrupt, run_dir=tmp_path, resume=True)
    # PPCA has 3 steps an epoch: a record every 51 steps, and one of the last step
    assert [call[0] for call in kept.calls] == ["settings", 102, 120]


def test_object_without_the_methods_is_refused():
    with pytest.raises(ValueError, match="tracker must have the methods settings"):
        train(print)


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for make, name in ((MLflow, "mlflow"), (WandB, "wandb")):
        with pytest.raises(ImportError, match=rf"{name} is not installed; run: pip in"):
            make(None)


# The real libraries
# ----------------------------------------------------------------------------------------


def used(tracker):
    """Sends a run with its bounds and its curves to a tracker; returns the result of fit."""
    from vilvm import plots

    assert isinstance(tracker, Tracker)
    lvm, fitted = train(tracker, validation=X)
    bounds = vilvm.evaluate(lvm, X, num_samples=20).bounds
    tracker.metrics(fitted.steps, {f"test/{n}": b.mean for n, b in bounds.items()})
    tracker.figure("curves", plots.elbo_curves(fitted.history))
    return fitted, bounds["iwae"].mean


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inside the libraries
def test_tensorboard_shows_the_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    fitted, iwae = used(TensorBoard(writer))  # read before the writer is closed
    read = EventAccumulator(str(tmp_path)).Reload()
    curve = read.Scalars("validation_elbo")
    assert [e.step for e in curve] == fitted.history["step"].tolist()
    expected = fitted.history["validation_elbo"].tolist()
    assert [e.value for e in curve] == pytest.approx(expected)
    assert read.Scalars("test/iwae")[0].value == pytest.approx(iwae)
    assert len(read.Images("curves")) == 1
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["batch_size"].number_value == 20
    assert "clip" not in found  # None
    writer.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_shows_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        fitted, iwae = used(MLflow(run))
        train(MLflow(run), 60)  # the run is continued with another setting
    client = mlflow.MlflowClient()
    data = client.get_run(run.info.run_id).data
    assert (data.params["batch_size"], data.params["steps"]) == ("20", "120")
    curve = client.get_metric_history(run.info.run_id, "validation_elbo")
    assert [m.step for m in curve] == fitted.history["step"].tolist()
    assert data.metrics["test/iwae"] == pytest.approx(iwae)
    names = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert names == ["curves.png"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_run_offline(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="tests") as run:
        fitted, iwae = used(WandB(run))
        assert run.config["batch_size"] == 20
        assert run.config["clip"] is None
        assert run.summary["test/iwae"] == pytest.approx(iwae)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()  # the numbers are JSON in it
    for record in fitted.history:
        assert json.dumps(record.validation_elbo).encode() in written
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/curves_*.png"))
