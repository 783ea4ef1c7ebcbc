"""Missing values: read from every kind of data, and imputed as the exact conditional has it."""

import numpy as np
import pandas as pd
import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.data import Masked, as_data, with_missing
from vilvm.models.ppca import PPCA
from vilvm.wrappers import impute, partly_observed, with_prior_guide

NAN = float("nan")
VALUES = [[1.0, NAN, 3.0], [NAN, NAN, 0.5], [2.0, 5.0, 1.0]]
OBSERVED = ~torch.tensor(VALUES).isnan()


def frame(**options):
    return pd.DataFrame(VALUES, columns=list("abc"), **options)


KINDS = {
    "tensor": lambda: torch.tensor(VALUES),
    "numpy": lambda: np.array(VALUES),
    "masked": lambda: np.ma.masked_invalid(VALUES),
    "pandas": frame,
    "pandas nullable": lambda: frame().convert_dtypes(),
    "polars": lambda: pl.DataFrame(VALUES, schema=list("abc"), orient="row"),
    "polars null": lambda: pl.from_pandas(frame(), nan_to_null=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_become_a_mask(kind):
    data = with_missing(KINDS[kind]())
    x, observed = data.x
    assert torch.equal(observed, OBSERVED)
    assert torch.equal(x, torch.tensor(VALUES).nan_to_num())
    assert len(data.subset(slice(1, 3)).x.observed) == 2
    filled = with_missing(KINDS[kind](), fill="mean").x.x
    assert torch.equal(filled[:, 0], torch.tensor([1.0, 1.5, 2.0]))


def test_an_element_of_a_dict_may_have_missing_values():
    labelled = frame(index=["p", "q", "r"])
    data = with_missing({"x": labelled, "y": torch.arange(3)}, of="x")
    assert torch.equal(data.x.x["x"], torch.tensor(VALUES).nan_to_num())
    assert torch.equal(data.x.observed, OBSERVED)
    assert list(data.index) == ["p", "q", "r"]
    with pytest.raises(ValueError, match=r"name the element .* with of=\.\.\."):
        with_missing({"x": labelled})


def test_unusable_data_are_refused():
    for data, said in (
        (torch.tensor([[NAN]]), "no value is observed"),
        (torch.tensor([[np.inf]]), "holds NaN or infinity"),
        (pd.Series(pd.Categorical(["a", None])), "codes of categories have no mean"),
    ):
        with pytest.raises(ValueError, match=said):
            with_missing(data, fill="mean")
    with pytest.raises(ValueError, match="fill must be a number or 'mean'"):
        with_missing(torch.ones(2), fill="median")
    with pytest.raises(ValueError, match="have no mask; make them with"):
        impute(partly_observed(PPCA(3, 1)), torch.zeros(2, 3))


def gaussian(num_data, seed=0):
    """pPCA, data from it of which some values are missing, and the model that sees the others."""
    torch.manual_seed(seed)
    lvm = PPCA(6, 2)
    with torch.no_grad():
        lvm.b.copy_(torch.linspace(-1, 1, 6))
    x = vilvm.sample(lvm, num_data)["x"]
    x[torch.rand(x.shape) < 0.4] = NAN
    x[0], x[0, 0] = NAN, 1.0  # one value only
    return lvm, x, partly_observed(lvm)


def conditional(lvm, x):
    """log p(x_O) and E[x | x_O] of each row, in closed form."""
    W, noise = lvm.W.detach().double(), lvm.log_sigma.exp().item()
    cov, mean = (
        W @ W.T + noise**2 * torch.eye(6, dtype=torch.float64),
        lvm.b.detach().double(),
    )
    log_p, full = [], []
    for row in x.double():
        if row.isnan().all():
            log_p.append(row.new_zeros(()))
            full.append(mean)
            continue
        o = ~row.isnan()
        part = dist.MultivariateNormal(mean[o], cov[o][:, o])
        log_p.append(part.log_prob(row[o]))
        shift = torch.linalg.solve(cov[o][:, o], row[o] - mean[o])
        full.append(torch.where(o, row.nan_to_num(), mean + cov[:, o] @ shift))
    return torch.stack(log_p), torch.stack(full)


def test_observed_entries_alone_enter_the_likelihood():
    lvm, x, partial = gaussian(8)
    data = with_missing(x)
    truth, _ = conditional(lvm, x)
    bound = vilvm.evaluate(with_prior_guide(partial), data, num_samples=20_000).bounds
    errors = (bound["iwae"].values - truth) / bound["iwae"].errors
    assert errors.abs().max() < 5  # of 8 data: fails once in 200,000
    z = vilvm.posterior(lvm, data.x.x, 3)
    at = pyro.poutine.condition(partial.model, data={"z": z["z"][0]})
    densities = []
    for fill in (0.0, 7.0):
        trace = pyro.poutine.trace(at).get_trace(with_missing(x, fill=fill).x)
        trace.compute_log_prob()
        densities.append(trace.nodes["x"]["log_prob"])
    assert torch.equal(*densities)


def test_imputation_equals_the_exact_conditional():
    lvm, x, partial = gaussian(6)
    _, truth = conditional(lvm, x)
    guided = with_prior_guide(partial)
    data = with_missing(x)
    runs = torch.stack(
        [
            impute(guided, data, seed=seed, num_samples=400, proposals=4000)
            for seed in range(12)
        ]
    ).double()
    mean, error = runs.mean(0), runs.std(0) / 12**0.5
    missing = x.isnan()
    # Student's t with 11 degrees of freedom, some 15 numbers: fails once in 2,000 at 6
    assert ((mean - truth)[missing] / error[missing]).abs().max() < 6
    assert torch.equal(mean[~missing].float(), x[~missing])


def test_imputed_frame_keeps_its_names():
    _, x, partial = gaussian(5)
    named = pd.DataFrame(x.numpy(), columns=list("abcdef"), index=list("vwxyz"))
    full = impute(partial, with_missing(named), num_samples=50, as_frame=True)
    assert list(full.columns) == list("abcdef")
    assert list(full.index) == list("vwxyz")
    same = impute(partial, with_missing(x), num_samples=50)
    assert np.array_equal(full.to_numpy(), same.numpy())


@pytest.mark.slow
def test_a_pair_is_trained_on_its_observed_values():
    """The likelihood of pPCA with missing values rises to that of the true parameters."""
    truth, x, _ = gaussian(300)
    torch.manual_seed(1)
    lvm = partly_observed(PPCA(6, 2))
    fitted = vilvm.fit(
        lvm,
        with_missing(x),
        steps=400,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.03),
    )
    assert fitted.stopped == "finished"
    ours, best = (conditional(m, x)[0].mean() for m in (lvm.lvm, truth))
    start = conditional(PPCA(6, 2), x)[0].mean()
    assert best - ours < 0.25 * (best - start)


def test_single_numbers_may_be_missing():
    """A site without event dimensions, as in eight schools."""

    class Schools(torch.nn.Module):
        def model(self, batch):
            y, sigma = batch
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            with pyro.plate("school", len(y)):
                pyro.sample("y", dist.Normal(mu, sigma), obs=y)

        def guide(self, batch):
            pyro.sample("mu", dist.Normal(0.0, 5.0))

    y, sigma = torch.tensor([28.0, NAN, -3.0]), torch.tensor([15.0, 10.0, 16.0])
    data = with_missing((y, sigma), of=0)
    lvm = partly_observed(Schools(), site="y")
    weights = vilvm.log_weights(lvm, data.x, 50)
    seen = y[::2], sigma[::2]
    again = vilvm.Pair(
        pyro.poutine.condition(Schools().model, {"mu": weights.latents["mu"][0]}),
        lambda _: None,
    )
    only = pyro.poutine.trace(again.model).get_trace(seen)
    torch.testing.assert_close(
        weights.log_likelihood[0].sum(),
        only.log_prob_sum(lambda n, _: n == "y").double(),
    )
    full = impute(lvm, data, site="y", num_samples=20)
    assert full[0] == 28
    assert full[1].isfinite()


def test_data_without_a_mask_are_observed_completely():
    lvm, x, partial = gaussian(4)
    x = x.nan_to_num()
    whole = Masked(x, torch.ones_like(x).bool())
    of = [
        vilvm.evaluate(m, d, num_samples=5).bounds["elbo"].values
        for m, d in ((lvm, x), (partial, x), (partial, as_data(whole)))
    ]
    assert torch.equal(of[0], of[1])
    torch.testing.assert_close(of[0], of[2])
    assert vilvm.sample(partial, 3)["x"].shape == (3, 6)
    with pytest.raises(vilvm.ContractError, match=r"the mask has shape \(3, 6\)"):
        vilvm.log_weights(partial, Masked(x, torch.ones(3, 6).bool()))
