"""Every kind of data that people have gives the numbers of the same data as tensors."""

import warnings

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
import xarray as xr
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

import vilvm
from vilvm._runtime import notes
from vilvm.data import Data, _torch_loaders, as_data, from_anndata, padded
from vilvm.models.deep_markov import tiny as deep_markov
from vilvm.models.ppca import PPCA

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
NAMES = [f"row {i}" for i in range(40)]
COLUMNS = list("abcd")


class Rows(Dataset):
    """A dataset with rows by number and nothing else."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


def frame():
    return pd.DataFrame(X.numpy(), columns=COLUMNS, index=NAMES)


KINDS = {
    "numpy": X.numpy,
    "numpy float64": lambda: X.double().numpy(),
    "numpy, other byte order": lambda: X.numpy().astype(">f4"),
    "pandas": frame,
    "pandas float64": lambda: frame().astype("float64"),
    "pandas nullable": lambda: frame().convert_dtypes(),
    "polars": lambda: pl.from_pandas(frame()),
    "xarray": lambda: xr.DataArray(X.numpy(), {"cell": NAMES}, ("cell", "gene")),
    "csr": lambda: sp.csr_matrix(X.numpy()),
    "coo": lambda: sp.coo_array(X.double().numpy()),
    "csc": lambda: sp.csc_array(X.numpy()),
    "anndata": lambda: anndata.AnnData(frame()),
    "sparse anndata": lambda: anndata.AnnData(sp.csr_matrix(X.numpy())),
    "TensorDataset": lambda: TensorDataset(X),
    "Dataset": Rows,
    "DataLoader": lambda: DataLoader(Rows(), batch_size=7),
}


@pytest.mark.parametrize("kind", KINDS)
def test_data_equal_tensors(kind):
    data = as_data(KINDS[kind]())
    assert data.x.dtype == torch.float32
    assert torch.equal(data.loaded().x, X)
    some = torch.tensor([3, 39, 3, -2])
    assert torch.equal(data.subset(some).x, X[some])
    assert torch.equal(data.subset(torch.arange(40) < 5).x, X[:5])
    assert torch.equal(data.take(some.abs()).x, X[some.abs()])


def trained(data, **options):
    torch.manual_seed(0)
    lvm = PPCA(4, 1)
    vilvm.fit(lvm, data, epochs=2, **options)
    return lvm


@pytest.mark.parametrize("kind", ["numpy", "pandas", "polars", "csr", "Dataset"])
def test_fit_and_evaluate_equal_those_on_tensors(kind):
    data, same = KINDS[kind](), {"batch_size": 16, "seed": 3}
    lvm, other = trained(X, **same), trained(data, **same)
    for ours, theirs in zip(lvm.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    bounds = [
        vilvm.evaluate(lvm, d, num_samples=5).bounds["iwae"].values for d in (X, data)
    ]
    assert torch.equal(*bounds)


def test_other_verbs_equal_those_on_tensors():
    lvm, named = PPCA(4, 1).maximise(X), frame()
    for a, b in zip(
        vilvm.prepare(lvm, X, batch_size=9).batches,
        vilvm.prepare(lvm, named, batch_size=9).batches,
        strict=True,
    ):
        assert torch.equal(a.x, b.x)
    k, other = (vilvm.diagnostics.pareto_k(lvm, d, seed=1).k for d in (X, named))
    assert torch.equal(k, other)
    means, other = (vilvm.posterior_mean(lvm, d)["z"] for d in (X, X.numpy()))
    assert torch.equal(means, other)
    for draw in (vilvm.posterior, vilvm.resample):
        torch.manual_seed(2)
        ours = draw(lvm, X, 3)["z"]
        torch.manual_seed(2)
        assert torch.equal(ours, draw(lvm, named, 3)["z"])


def test_infer_keeps_float64():
    import pyro
    import pyro.distributions as dist

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1e3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = 1e6 / 3 + np.arange(8.0)  # not exact in float32
    found = [
        vilvm.infer(model, d, progress=False, refine=False).summary()["mu"].mean
        for d in (torch.from_numpy(y), y, pd.Series(y))
    ]
    assert found[0] == found[1] == found[2]


def test_embedding_has_the_index_of_the_data():
    lvm, named = PPCA(4, 2), frame()
    z = vilvm.posterior_mean(lvm, X)["z"].detach().numpy()
    for data in (named, anndata.AnnData(sp.csr_matrix(X.numpy()), obs=named[[]])):
        found = vilvm.posterior_mean(lvm, data, as_frame=True)
        assert list(found.index) == NAMES
        assert list(found.columns) == ["z[0]", "z[1]"]
        np.testing.assert_allclose(found.to_numpy(), z, rtol=1e-6)
    part = as_data(named).subset(torch.tensor([5, 2]))
    assert list(vilvm.posterior_mean(lvm, part, as_frame=True).index) == [
        "row 5",
        "row 2",
    ]
    assert list(vilvm.posterior_mean(lvm, X, as_frame=True).index) == list(range(40))


def test_rows_of_a_matrix_are_read_in_chunks(monkeypatch):
    monkeypatch.setattr("vilvm.weights.guide_means._ROWS", 7)
    lvm = PPCA(4, 2)
    whole = vilvm.posterior_mean(lvm, X)["z"]
    torch.testing.assert_close(
        vilvm.posterior_mean(lvm, sp.csr_array(X.numpy()))["z"], whole
    )


def test_types_of_numbers():
    for kind in ("u1", "i2", "i4", "i8", "?"):
        array = np.arange(3).astype(kind)
        assert as_data(array).x.tolist() == array.tolist()
    assert as_data(np.arange(3, dtype="u4")).x.dtype == torch.int64
    assert as_data(np.array([2**62, 1])).x.tolist() == [2**62, 1]
    assert as_data(frame(), dtype=torch.float64).x.dtype == torch.float64
    ints = as_data(pd.DataFrame({"a": [1, 2**24], "b": [True, False]}))
    assert ints.x.tolist() == [[1.0, 1.0], [2**24, 0.0]]
    lvm = PPCA(4, 1).double()
    vilvm.fit(lvm, X.double().numpy(), steps=1)


def test_float64_is_mentioned_once(monkeypatch):
    monkeypatch.setattr(notes, "_GIVEN", set())
    with pytest.warns(notes.Note, match="float64 numbers become torch.float32"):
        as_data(X.double().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_data(X.double().numpy())
    monkeypatch.setattr(notes, "_GIVEN", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_data(X.numpy())


def test_categories_become_codes():
    kinds = pd.Categorical(["u", "v"] * 20, categories=["v", "u", "w"])
    mixed = frame().assign(kind=kinds)
    data = as_data({"x": mixed[COLUMNS], "kind": mixed["kind"]})
    assert data.levels == {"kind": ("v", "u", "w")}
    assert data.x["kind"][:3].tolist() == [1, 0, 1]
    assert list(data.index) == NAMES
    with pytest.raises(ValueError, match=r'pass a dict, such as \{"x": frame\[\[\'a\''):
        as_data(mixed)
    for dtype in (pl.Categorical, pl.Enum(["u", "v"])):
        series = pl.Series("kind", ["u", "v", "u"], dtype=dtype)
        assert as_data(series).x.tolist() == [0, 1, 0]
        assert as_data(pl.DataFrame([series])).levels == {"kind": ("u", "v")}


def test_levels_of_validation_data_must_be_those_of_training():
    def of(values):
        return Data({"x": X[:2], "k": pd.Series(values, name="k", dtype="category")})

    with pytest.raises(ValueError, match="column 'k' has the levels a, c"):
        vilvm.fit(PPCA(4, 1), of(["a", "b"]), validation=of(["a", "c"]), steps=1)
    turned = frame()[COLUMNS[::-1]]
    with pytest.raises(ValueError, match="another order than in training"):
        vilvm.fit(PPCA(4, 1), frame(), validation=turned, steps=1)


def with_gap(column, row=3):
    gap = frame()
    gap.loc[NAMES[row], column] = np.nan
    return gap


REFUSED = {
    "missing": (lambda: with_gap("b"), "missing: 1 in column 'b'.*with_missing"),
    "null": (lambda: pl.from_pandas(with_gap("c")), "missing: 1 in column 'c'"),
    "text": (lambda: frame().assign(t="x"), "column 't' holds no numbers"),
    "dates": (lambda: pd.Series(pd.to_datetime(["2020-01-01"])), "holds no numbers"),
    "polars text": (lambda: pl.DataFrame({"t": ["x"]}), "column 't' holds no numbers"),
    "lazy": (lambda: pl.LazyFrame({"a": [1.0]}), r"pass frame\.collect\(\)"),
    "same names": (
        lambda: frame().rename(columns={"b": "a"}),
        "several columns named 'a'",
    ),
    "large integers": (
        lambda: pd.DataFrame({"id": [2**24 + 1]}),
        "column 'id' holds the integer 16777217",
    ),
    "large floats": (lambda: np.array([1e300]), "torch.float32 cannot hold; rescale"),
    "objects": (lambda: np.array([[1], [1, 2]], dtype=object), "vilvm.data.padded"),
    "complex": (lambda: np.array([1j]), "real and imaginary parts"),
    "unsigned": (lambda: np.array([2**63], "u8"), "torch.int64 cannot hold"),
    "misaligned": (
        lambda: (frame(), frame()["a"].iloc[::-1]),
        r"rows of x\[0\] and x\[1\] have different labels",
    ),
    "sparse NaN": (
        lambda: sp.csr_array(np.array([[0, 1], [np.nan, 0]])),
        r"NaN or infinity, first at index \[1, 0\]",
    ),
    "iterable": (
        lambda: type("D", (IterableDataset,), {"__iter__": iter})(),
        "iterable dataset",
    ),
    "weighted": (
        lambda: DataLoader(Rows(), sampler=WeightedRandomSampler([1.0] * 40, 40)),
        r"sampler of its own \(WeightedRandomSampler\)",
    ),
    "text rows": (
        lambda: type("D", (Rows,), {"__getitem__": lambda *_: "x"})(),
        "hold no numbers",
    ),
    "random rows": (
        lambda: type("D", (Rows,), {"__getitem__": lambda *_: torch.rand(2)})(),
        "row 0 of D differs each time",
    ),
    "unequal rows": (
        lambda: type("D", (Rows,), {"__getitem__": lambda _, i: torch.zeros(i)})(),
        "cannot be stacked into tensors",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_data_are_refused(case):
    make, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as caught:
        as_data(make(), "training data")
    assert str(caught.value).startswith("training data: ")
    assert "\n" not in str(caught.value)


def test_a_loader_sets_batch_size_and_order():
    same = trained(X, batch_size=7, shuffle=False)
    shuffled = trained(X, batch_size=7)
    plain, random = (
        trained(DataLoader(TensorDataset(X), batch_size=7, shuffle=s))
        for s in (False, True)
    )
    given = trained(
        DataLoader(TensorDataset(X), batch_size=3), batch_size=7, shuffle=True
    )
    assert torch.equal(plain.W, same.W)
    assert torch.equal(random.W, shuffled.W)
    assert torch.equal(given.W, shuffled.W)
    assert not torch.equal(same.W, shuffled.W)


def test_other_settings_of_a_loader_are_named(monkeypatch):
    monkeypatch.setattr(notes, "_GIVEN", set())
    with pytest.warns(notes.Note, match="num_workers, drop_last has no effect here"):
        as_data(DataLoader(TensorDataset(X), num_workers=1, drop_last=True))


def test_a_large_dataset_is_read_in_batches(monkeypatch):
    monkeypatch.setattr(_torch_loaders, "MOST_BYTES", 100)
    data = as_data(Rows())
    assert data.streamed
    assert torch.equal(data.loaded().x, X)
    assert torch.equal(trained(Rows(), batch_size=16).W, trained(X, batch_size=16).W)


def test_reading_a_dataset_draws_nothing():
    class Drawing(Rows):
        def __getitem__(self, i):
            torch.rand(3)
            return X[i]

    torch.manual_seed(0)
    first = torch.rand(2)
    torch.manual_seed(0)
    as_data(Drawing())
    assert torch.equal(torch.rand(2), first)


def test_a_collate_function_is_used():
    def pad(rows):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    class Unequal(Rows):
        def __getitem__(self, i):
            return X[i, : 1 + i % 4]

    x = as_data(DataLoader(Unequal(), batch_size=3, collate_fn=pad)).x
    assert x.shape == (40, 4)
    assert torch.equal(x[3], X[3])


def test_sparse_fingerprint_depends_on_the_numbers_alone():
    dense = np.array([[0.0, 1.0], [2.0, 0.0]], "f4")
    first = as_data(sp.csr_array(dense)).fingerprint()
    assert as_data(sp.coo_array(dense)).fingerprint() == first
    assert as_data(sp.csr_array(dense * 2)).fingerprint() != first


def test_anndata_layers_and_covariates(tmp_path):
    obs = pd.DataFrame({"lab": pd.Categorical(["p", "q"] * 20), "age": 1.5}, NAMES)
    adata = anndata.AnnData(sp.csr_matrix(X.numpy()), obs=obs)
    adata.layers["double"] = 2 * X.numpy()
    data = from_anndata(adata, layer="double", obs=["lab", "age"])
    assert torch.equal(data.x["x"], 2 * X)
    assert data.x["lab"][:2].tolist() == [0, 1]
    assert data.levels == {"lab": ("p", "q")}
    for options, said in (
        ({"layer": "none"}, r"no layer 'none'; there are \['double'\]"),
        ({"obs": ["sex"]}, "obs has no column 'sex'"),
        ({"adata": tmp_path / "no.h5ad"}, "no.h5ad: there is no such file"),
    ):
        with pytest.raises(ValueError, match=said):
            from_anndata(**{"adata": adata, **options})


def test_sequences_are_padded():
    sequences = [np.full((n, 1), float(n), "f4") for n in (2, 4, 3)]
    x, lengths = padded(sequences)
    assert x.shape == (3, 4, 1)
    assert lengths.tolist() == [2, 4, 3]
    assert x[0, :, 0].tolist() == [2, 2, 0, 0]
    lvm, (batch, _) = deep_markov()
    of_width = [torch.randn(n, batch.shape[-1]) for n in (3, 5)]
    vilvm.fit(lvm, padded(of_width), steps=1)
    for bad, said in (
        ([], "got no sequence"),
        ([np.zeros((2, 1)), np.zeros((2, 2))], "sequence 1 has steps of shape"),
    ):
        with pytest.raises(ValueError, match=said):
            padded(bad)
