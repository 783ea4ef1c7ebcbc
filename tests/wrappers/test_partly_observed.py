"""A partly observed datum, compared with the model of the observed part in closed form."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.testing import check_lvm
from vilvm.wrappers import fit_guide, with_prior_guide
from vilvm.wrappers.partly_observed import partly_observed

SEEN = torch.tensor([True, False, True, True, False, True])


def part_of(lvm):
    """pPCA of the observed coordinates alone."""
    part = PPCA(int(SEEN.sum()), lvm.W.shape[1])
    state = lvm.state_dict()
    state |= {"W": state["W"][SEEN], "b": state["b"][SEEN], "V": state["V"][:, SEEN]}
    part.load_state_dict(state)
    return part


def test_likelihood_scores_observed_components_only():
    torch.manual_seed(0)
    lvm = VAE(data_dim=6, latent_dim=2)
    x, other = torch.bernoulli(torch.full((2, 5, 6), 0.5))
    partial = partly_observed(lvm, SEEN)
    z = torch.zeros(5, 2)
    truth = dist.Bernoulli(logits=lvm.decoder(z)).log_prob(x)[:, SEEN].sum(1)
    model = pyro.poutine.condition(partial.model, data={"z": z})
    for hidden in (
        x,
        torch.where(SEEN, x, other),
    ):  # for any values of the unobserved components
        found = pyro.poutine.trace(model).get_trace(hidden)
        found.compute_log_prob()
        torch.testing.assert_close(found.nodes["x"]["log_prob"], truth)


def test_evidence_equals_that_of_the_observed_part():
    torch.manual_seed(0)
    lvm = PPCA(6, 2)
    x = torch.randn(4, 6)
    partial = with_prior_guide(partly_observed(lvm, SEEN))
    bound = vilvm.evaluate(partial, x, num_samples=20_000).bounds["iwae"]
    truth = part_of(lvm).exact_log_evidence(x[:, SEEN]).detach().double()
    assert ((bound.values - truth) / bound.errors).abs().max() < 5


def test_guide_fitted_to_observed_part_matches_exact_posterior():
    torch.manual_seed(0)
    lvm = PPCA(6, 1)
    x = vilvm.sample(lvm, 500)["x"]
    partial, _ = fit_guide(
        partly_observed(lvm, SEEN),
        x * SEEN,
        hidden=(),
        epochs=300,
        batch_size=500,
        lr=0.03,
    )
    z = vilvm.posterior_mean(partial, x * SEEN)["z"]
    truth = part_of(lvm).exact_posterior(x[:, SEEN])
    assert ((z - truth.mean) / truth.stddev).abs().max() < 0.1
    torch.testing.assert_close(
        vilvm.predict(partial, {"z": z})["x"], z @ lvm.W.T + lvm.b
    )


def test_partly_observed_model_keeps_the_contract():
    def tiny():
        x = torch.bernoulli(torch.full((5, 6), 0.5))
        return partly_observed(
            VAE(data_dim=6, latent_dim=2, encoder_hidden=(8,), decoder_hidden=(8,)),
            torch.ones(6).bool(),
        ), x

    check_lvm(tiny)


def test_unsupported_masks_and_models_are_refused():
    x = torch.zeros(2, 6)
    for mask in (torch.ones(6), torch.zeros(6).bool(), [True] * 6):
        with pytest.raises(
            ValueError,
            match="must be a Boolean tensor of a datum's shape, with at least one True",
        ):
            partly_observed(VAE(data_dim=6), mask)
    with pytest.raises(
        vilvm.ContractError,
        match=r"mask has shape \(6,\), and a datum of site 'x' has shape \(5,\)",
    ):
        vilvm.log_weights(partly_observed(VAE(data_dim=5), SEEN), torch.zeros(2, 5))
    with pytest.raises(
        vilvm.ContractError, match="VAE has no site 'y'; name its observed site"
    ):
        vilvm.log_weights(partly_observed(VAE(data_dim=6), SEEN, site="y"), x)

    class Whole(torch.nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample(
                    "x", dist.MultivariateNormal(torch.zeros(6), torch.eye(6)), obs=x
                )

        def guide(self, x):
            pass

    with pytest.raises(
        vilvm.ContractError,
        match=r"\(MultivariateNormal\) does not factorise over its components",
    ):
        vilvm.log_weights(partly_observed(Whole(), SEEN), x)
