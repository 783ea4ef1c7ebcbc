"""Every test starts from an empty global parameter store and one seed."""

import os

import pyro
import pytest
import torch

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers beside each other would fight for the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(autouse=True)
def _clean_slate():
    pyro.clear_param_store()
    torch.manual_seed(0)


def pytest_addoption(parser):
    parser.addoption(
        "--compiled",
        action="store_true",
        help="every step that fit takes is traced, and run as a graph",
    )


@pytest.fixture(autouse=True)
def _compiled(request, monkeypatch):
    """With --compiled, whatever holds for the eager step must hold for the graph; Inductor itself
    is left to slow tests.
    """
    if request.config.getoption("--compiled"):
        from vilvm._compile import graph
        from vilvm.training import _preparation, compiled_step

        monkeypatch.setattr(_preparation, "_WORTH_COMPILING", 0)
        monkeypatch.setattr(compiled_step, "machine_code", graph)
