"""Every test starts from an empty global parameter store and one seed."""

import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _clean_slate():
    pyro.clear_param_store()
    torch.manual_seed(0)
