"""The NumPyro models of the benchmarks have the densities of the Pyro models."""

import numpy as np
import pytest

from tests.models.exact import posteriordb_or_skip
from tests.models.test_posteriordb import (
    given_arrays,
    latents_of,
    reference_parameters,
    sites_at,
    tensors,
)
from vilvm.models.posteriordb import names, posterior
from vilvm.wrappers import float64

jax = pytest.importorskip("jax")
pytest.importorskip("numpyro")


@pytest.mark.parametrize("name", names())
def test_density_equals_that_of_the_pyro_model(name):
    from numpyro.infer.util import log_density

    from benchmarks.numpyro_models.posteriordb import POSTERIORS

    with float64(), jax.enable_x64(True):
        problem = posteriordb_or_skip(name, posterior)
        reference = problem.reference()
        given = given_arrays(reference)
        parameters = reference_parameters(problem, reference, number=5)
        latents, _ = latents_of(name, given, parameters)
        model, arguments = POSTERIORS[name](given)
        ours, theirs = [], []
        for i in range(5):
            one = {site: values[i] for site, values in latents.items()}
            sites = sites_at(problem, tensors({s: np.array(v) for s, v in one.items()}))
            ours.append(sum(s["log_prob"].sum().item() for s in sites.values()))
            theirs.append(log_density(model, (), arguments, one)[0].item())
    ours, theirs = np.array(ours), np.array(theirs)
    assert np.ptp(ours) > 0.1
    np.testing.assert_allclose(theirs - theirs[0], ours - ours[0], rtol=1e-6, atol=1e-6)


def test_every_posterior_has_a_model():
    from benchmarks.numpyro_models.posteriordb import POSTERIORS

    assert sorted(POSTERIORS) == names()
