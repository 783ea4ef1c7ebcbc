"""A model keeps the names of its columns, and refuses data whose columns mean something else."""

import numpy as np
import pandas as pd
import polars as pl
import pyro
import pyro.distributions as dist
import pytest
import torch

import vilvm
from vilvm.data import Data, as_data, from_anndata, training_columns, with_missing
from vilvm.models.count_vae import CountVAE
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.saving import describe
from vilvm.wrappers import InFloat64, impute, partly_observed

ROWS = np.random.default_rng(0).normal(size=(40, 4)) * [1, 2, 3, 4]
COLUMNS = tuple("abcd")
FRAME = pd.DataFrame(ROWS, columns=list(COLUMNS))
TURNED = FRAME[["d", "c", "b", "a"]]


@pytest.fixture
def ppca():
    return PPCA(4, 2).maximise(FRAME)


def test_names_come_from_a_fit_and_from_a_closed_form(ppca):
    assert training_columns(ppca).columns == COLUMNS
    lvm = VAE(4, 2, likelihood="gaussian")
    assert training_columns(lvm) is None
    vilvm.fit(lvm, FRAME, steps=1, progress=False)
    assert training_columns(lvm).columns == COLUMNS
    counts = pl.DataFrame({"u": [1, 2, 3, 0], "v": [0, 4, 1, 2]})
    assert training_columns(CountVAE(2).start_at(counts)).columns == ("u", "v")


CALLS = {
    "evaluate": lambda lvm, x: vilvm.evaluate(lvm, x, num_samples=2),
    "diagnose": lambda lvm, x: vilvm.diagnose(lvm, x, budget=5),
    "fit": lambda lvm, x: vilvm.fit(lvm, x, steps=1, progress=False),
    "posterior_mean": vilvm.posterior_mean,
    "posterior": lambda lvm, x: vilvm.posterior(lvm, x, 2),
    "log_weights": lambda lvm, x: vilvm.log_weights(lvm, x, 2),
    "wrapped": lambda lvm, x: vilvm.posterior(InFloat64(lvm), x, 2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_other_order_is_refused(ppca, call):
    with pytest.raises(
        ValueError, match=r"another order than in training \(a, b, c, d"
    ):
        call(ppca, TURNED)
    with pytest.raises(ValueError, match="they lack b and have e"):
        call(ppca, FRAME.rename(columns={"b": "e"}))


def test_columns_in_the_order_of_training_give_the_numbers_of_training(ppca):
    known = vilvm.posterior_mean(ppca, FRAME)["z"]
    chosen = TURNED.assign(e=0.0)[list(training_columns(ppca).columns)]
    assert torch.equal(vilvm.posterior_mean(ppca, chosen)["z"], known)
    assert torch.equal(vilvm.posterior_mean(ppca, ROWS)["z"], known)  # without names


def test_width_is_compared_where_there_are_no_names(ppca):
    with pytest.raises(ValueError, match="has 3 columns, and the training data had 4"):
        vilvm.evaluate(ppca, ROWS[:, :3])


def test_a_closed_form_may_start_anew(ppca):
    ppca.maximise(TURNED)
    assert training_columns(ppca).columns == tuple("dcba")
    ppca.maximise(ROWS)
    assert training_columns(ppca) is None


def test_names_in_tuples_and_dicts():
    data = as_data({"x": FRAME, "y": FRAME["a"]})
    assert data.columns == {"x['x']": COLUMNS}
    assert as_data((FRAME, torch.zeros(40))).columns == {"x[0]": COLUMNS}
    gap = FRAME.copy()
    gap.loc[3, "b"] = np.nan
    assert with_missing(gap).columns == COLUMNS
    assert with_missing({"x": gap, "y": FRAME}, of="x").columns == {
        "x['x']": COLUMNS,
        "x['y']": COLUMNS,
    }


def test_names_of_genes_beside_covariates():
    anndata = pytest.importorskip("anndata")
    obs = pd.DataFrame(
        {"lab": pd.Categorical(["u"] * 20 + ["v"] * 20)}, map(str, range(40))
    )
    adata = anndata.AnnData(ROWS, obs, pd.DataFrame(index=list(COLUMNS)))
    data = from_anndata(adata, obs=["lab"])
    assert data.columns == {"x['x']": COLUMNS}
    assert data.levels == {"lab": ("u", "v")}


def test_missing_values_are_filled_in_the_order_of_training():
    gap = FRAME.copy()
    gap.loc[3, "b"] = np.nan
    lvm = partly_observed(PPCA(4, 2))
    vilvm.fit(lvm, with_missing(gap), steps=1, progress=False)
    assert list(impute(lvm, with_missing(gap), as_frame=True)) == list(COLUMNS)
    with pytest.raises(ValueError, match="another order"):
        impute(lvm, with_missing(gap[["b", "a", "c", "d"]]))


def test_levels_must_be_those_of_training():
    class Kinds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.zeros(3, 2))

        def model(self, k):
            with pyro.plate("data", len(k)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample(
                    "k", dist.Categorical(logits=z[..., None] + self.rate[:, 0]), obs=k
                )

        def guide(self, k):
            with pyro.plate("data", len(k)):
                pyro.sample("z", dist.Normal(self.rate[:, 1][k], 1.0))

    lvm = Kinds()
    train = pd.Series(list("xyz") * 3, name="kind", dtype="category")
    vilvm.fit(lvm, train, steps=1, progress=False)
    fewer = pd.Series(list("zyz"), name="kind", dtype="category")
    with pytest.raises(
        ValueError, match="'kind' has the levels y, z, and in the training data"
    ):
        vilvm.evaluate(lvm, fewer)
    same = fewer.cat.set_categories(list("xyz"))
    codes = torch.tensor([2, 1, 2])
    found = [vilvm.posterior_mean(lvm, x)["z"] for x in (same, codes)]
    assert torch.equal(*found)


def test_files_keep_the_names(ppca, tmp_path):
    path = vilvm.save(ppca, tmp_path / "ppca.safetensors")
    assert describe(path).columns == COLUMNS
    with pytest.raises(ValueError, match="another order"):
        vilvm.evaluate(vilvm.load(path), TURNED)
    vilvm.fit(ppca, FRAME, steps=1, run_dir=tmp_path / "run", progress=False)
    again = vilvm.load(tmp_path / "run", PPCA(4, 2))
    assert training_columns(again).columns == COLUMNS
    same = Data(torch.tensor(ROWS).float(), columns=tuple("dcba"))
    with pytest.raises(vilvm.CheckpointError, match="other columns"):
        vilvm.fit(PPCA(4, 2), same, steps=2, run_dir=tmp_path / "run", resume=True)


def test_a_file_without_names_has_none(tmp_path):
    path = vilvm.save(PPCA(4, 2), tmp_path / "ppca.safetensors")
    assert describe(path).columns is None
    assert training_columns(vilvm.load(path)) is None


REMARKS = {
    "numbers the rows": FRAME.assign(id=range(40)),
    "('a') to": FRAME.assign(e=1e4 * FRAME["a"]),
}


@pytest.mark.parametrize("remark", REMARKS)
def test_fit_remarks_on_columns(remark, capsys):
    vilvm.fit(PPCA(5, 1), REMARKS[remark], steps=1, progress=False)
    assert remark in "".join(capsys.readouterr())


def test_fit_says_nothing_of_usual_columns(capsys):
    vilvm.fit(PPCA(4, 1), FRAME, steps=1, progress=False)
    counts = pd.DataFrame({"rare": [0.0, 1.0] * 20, "common": [1e4, 5e4] * 20})
    vilvm.fit(PPCA(2, 1), counts, steps=1, progress=False)
    assert "".join(capsys.readouterr()) == ""


def test_results_have_the_labels_and_names_of_the_data(ppca):
    frame = FRAME.set_index(pd.Index([f"patient {i}" for i in range(40)]))
    table = vilvm.evaluate(ppca, frame, num_samples=5).to_frame(per_datum=True)
    assert list(table["datum"]) == list(frame.index)
    found = vilvm.diagnose(ppca, frame, budget=6, num_data=20, progress=False)
    assert "patient" in str(found.posterior)
    check = found.results["Posterior predictive check"].finding.verdict
    assert any(f" of {name}" in check or f"{name} and" in check for name in COLUMNS)
    assert "column" not in check


# Predictions at new covariates
# --------------------------------------------------------------------------------------------


def regression(data):
    X, y = data
    slopes = pyro.sample("slopes", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(X @ slopes, 0.5), obs=y)


def test_posterior_predicts_at_new_covariates():
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(50, 2)), columns=["u", "v"])
    y = X.to_numpy() @ [1.0, -2.0] + 0.5 * rng.normal(size=50)
    found = vilvm.infer(regression, (X, y), progress=False)
    new = pd.DataFrame(rng.normal(size=(3, 2)), columns=["u", "v"])
    A = X.to_numpy()
    covariance = np.linalg.inv(A.T @ A / 0.25 + np.eye(2) / 100)
    mean = new.to_numpy() @ covariance @ A.T @ y / 0.25
    spread = np.einsum("ni,ij,nj->n", new, covariance, new)
    for is_mean, variance in ((True, spread), (False, spread + 0.25)):
        draws = found.predict((new, np.zeros(3)), num_samples=4000, mean=is_mean)["y"]
        assert draws.shape == (4000, 3)
        z = (draws.mean(0).numpy() - mean) / np.sqrt(variance / 4000)
        assert np.abs(z).max() < 5  # of 3 means, each wrong 6e-7
        ratio = draws.var(0).numpy() / variance
        assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 4000)
    with pytest.raises(ValueError, match=r"columns of x\[0\] are in another order"):
        found.predict((new[["v", "u"]], np.zeros(3)))


def test_posterior_has_the_names_of_the_user():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    schools = ["Choate", "Deerfield", "Exeter"]
    expected = ["mu", *(f"theta[{school}]" for school in schools)]
    by_index = vilvm.infer(
        model, pd.Series([0.5, 1.0, -1.0], index=schools), progress=False
    )
    y = torch.tensor([0.5, 1.0, -1.0])
    given = vilvm.infer(model, y, coords={"school": schools}, progress=False)
    for found in (by_index, given):
        assert list(found.summary()) == expected
        assert list(found.to_datatree().posterior["school"].values) == schools
    with pytest.raises(ValueError, match="infer: coords has 'scool'"):
        vilvm.infer(model, y, coords={"scool": schools})
