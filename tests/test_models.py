"""Every model of the gallery keeps the contract; found by walking models/."""

import importlib
from pathlib import Path

import pytest

from vilvm.testing import check_lvm

MODELS = sorted(
    p.stem
    for p in (Path(__file__).parents[1] / "models").glob("*.py")
    if p.stem != "__init__"
)


# Of several models alike in kind, all but one take their turn with the slow tests.
LONG = {*MODELS} - {
    "vae",
    "ppca",
    "eight_schools",
    "autoencoder",
    "denoising_autoencoder",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in MODELS],
)
def test_model_keeps_the_contract(name):
    module = importlib.import_module(f"vilvm.models.{name}")
    # a model without Trace_ELBO has its own objective
    check_lvm(module.tiny, getattr(module, "objective", lambda: None)())
    assert module.__doc__, f"models/{name}.py has no docstring"
    assert "Reference" in module.__doc__, f"models/{name}.py names no paper"


@pytest.mark.parametrize("name", MODELS)
def test_model_has_a_test_of_its_own(name):
    assert (Path(__file__).parent / "models" / f"test_{name}.py").exists()
