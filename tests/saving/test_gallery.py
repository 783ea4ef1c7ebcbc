"""Models of the gallery, saved here and loaded by their file alone in another process."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vilvm
from tests.saving.loading_process import numbers

MODELS = sorted(p.stem for p in (Path(__file__).parents[2] / "models").glob("*.py"))
QUICK = ["vae", "eight_schools"]  # networks; an autoguide
LOADING = Path(__file__).with_name("loading_process.py")


def round_trip(names, folder):
    """The numbers of models in this process and in another one, by name."""
    here = {}
    for name in names:
        torch.manual_seed(1)
        lvm, batch = importlib.import_module(f"vilvm.models.{name}").tiny()
        vilvm.posterior(lvm, batch)  # an autoguide makes its parameters
        with torch.no_grad():  # the file, and not the constructor, must set them
            for parameter in lvm.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        vilvm.save(lvm, folder / f"{name}.safetensors", data=batch)
        torch.save(batch, folder / f"{name}.batch")
        here[name] = json.loads(json.dumps(numbers(lvm, batch)))
    command = [sys.executable, str(LOADING), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return here, json.loads(done.stdout)


@pytest.mark.slow
def test_another_process_finds_the_same_numbers(tmp_path):
    here, there = round_trip(QUICK, tmp_path)
    assert there == here


@pytest.fixture(scope="module")
def whole_gallery(tmp_path_factory):
    return round_trip(MODELS, tmp_path_factory.mktemp("gallery"))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_another_process_finds_the_same_numbers_of(whole_gallery, name):
    here, there = whole_gallery
    assert there[name] == here[name]


def test_the_file_names_its_data(tmp_path):
    lvm, batch = importlib.import_module("vilvm.models.vae").tiny()
    found = vilvm.saving.describe(vilvm.save(lvm, tmp_path / "vae", data=batch))
    assert found.data["fingerprint"] == vilvm.data.as_data(batch).fingerprint()
    assert found.data["num_data"] == 5
    assert set(found.versions) == {"vilvm", "torch", "pyro"}
    assert (found.kind, found.obstacle) == ("vilvm.models.vae.VAE", "")
