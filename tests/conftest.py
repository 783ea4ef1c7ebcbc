"""Every test starts from an empty global parameter store and one seed."""

import os

import pyro
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # workers beside each other would fight for the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(autouse=True)
def _clean_slate():
    pyro.clear_param_store()
    torch.manual_seed(0)
