"""The rows of benchmarks/published, at a tiny size: trained, interrupted, resumed, measured."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from benchmarks.published.__main__ import main, run_row
from benchmarks.published.rows import ROWS
from benchmarks.published.table import markdown, results_in
from benchmarks.published.training import Deadline, train, training_data
from vilvm.data import DynamicBinarisation
from vilvm.data.datasets import arrays
from vilvm.evaluation import Schedule

EFFORT = {
    "num_samples": 20,
    "num_images": 5,
    "schedule": Schedule(num_chains=2, num_temperatures=3, leapfrog=1),
}


def tiny_data():
    x = torch.rand(69, 16, generator=torch.Generator().manual_seed(0))
    return arrays(x[9:], x[:9], validation=9, transform=DynamicBinarisation())


def tiny(row):
    """The row with small data, for two epochs of at least 50 steps."""
    warmup = min(1, row.schedule.warmup)
    schedule = replace(row.schedule, epochs=2, batch=1, milestones=(1,), warmup=warmup)
    return replace(row, data=tiny_data, schedule=schedule)


def arguments(name, out, hours):
    return Namespace(row=name, share=1.0, hours=hours, device="cpu", seed=0, out=out)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae_static", "vamp"])
def test_row_stops_in_time_and_resumes(name, tmp_path):
    row, found = tiny(ROWS[name]), []
    for hours in (0.0, 1.0):
        args = arguments(name, tmp_path, hours)
        file = run_row(row, args, **EFFORT)
        assert file is not None
        found.append(json.loads(file.read_text()))
    assert [r["epochs"] for r in found] == [1, 2]
    assert [r["stopped"] for r in found] == ["interrupted", "finished"]
    last = found[1]
    assert last["bounds"]["iwae"]["num_samples"] == 20
    assert last["bounds"]["elbo"]["mean"] <= last["bounds"]["iwae"]["mean"] < 0
    assert last["ais"]["se"] > 0
    assert last["active_units"] >= 0
    assert 0 <= last["pareto_k"]["share_above"] <= 1
    assert {"date", "device", "torch"} <= set(last["environment"])
    line = markdown(results_in(tmp_path)).splitlines()[-1]
    assert line.startswith(f"| {name} |")
    assert "| 2 of 2 |" in line


@pytest.mark.parametrize("name", ROWS)
def test_row_trains(name, tmp_path):
    row, deadline = tiny(ROWS[name]), Deadline(1.0)
    data = row.data()
    lvm = row.model(training_data(row, data).x)
    before = [p.clone() for p in lvm.parameters()]
    fitted = train(row, lvm, data, tmp_path, deadline=deadline, share=0.03)
    assert fitted.steps == fitted.history[-1].step > 0
    moved = [not p.equal(q) for p, q in zip(lvm.parameters(), before, strict=True)]
    assert all(moved)


def test_training_takes_the_papers_schedule():
    static, burda = ROWS["vae_static"].schedule, ROWS["vae_burda"].schedule
    assert (static.epochs, static.batch, static.milestones) == (500, 100, (200, 350))
    assert burda.epochs == 3280
    assert burda.milestones == (1, 4, 13, 40, 121, 364, 1093)
    assert burda.rate * burda.factor**7 == pytest.approx(1e-4)


def test_validation_data_are_held_out_or_trained_on():
    data = tiny_data()
    assert len(training_data(ROWS["vae_static"], data)) == 51
    assert len(training_data(ROWS["vae_burda"], data)) == 60


def test_share_outside_its_range_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--row", "vae_static", "--share", "2"])
    assert "--share must be above 0 and at most 1; got 2" in capsys.readouterr().err
