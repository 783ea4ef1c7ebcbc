"""Data on disk equal data in memory; errors name the file and the fault."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import vilvm
from vilvm.data import Data, DynamicBinarisation, StaticBinarisation, as_data
from vilvm.data.datasets import on_disk
from vilvm.models.vae import VAE

ROOT = Path(__file__).parents[2]


def saved(folder, array, name="x.npy"):
    np.save(folder / name, array)
    return folder / name


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_those_of_the_array(tmp_path, kind, order):
    array = (
        np.random.default_rng(0).uniform(0, 200, (30, 4, 3)).astype(kind, order=order)
    )
    data = as_data(on_disk(saved(tmp_path, array)))
    expected = torch.from_numpy(array.astype(np.float32).reshape(30, 12))
    assert (len(data), data.divisible, data.image_shape, data.name) == (
        30,
        True,
        (4, 3),
        "x",
    )
    for index in (
        slice(3, 9),
        torch.tensor([7, 2, 2, -1]),
        torch.arange(30) % 4 == 1,
        slice(None),
    ):
        rows = data.subset(index).x
        assert rows.dtype == torch.float32
        assert torch.equal(rows, expected[index])
    assert torch.equal(torch.cat([part.x for part in data.chunks(7)]), expected)
    assert on_disk(tmp_path / "x.npy", flatten=False, dtype=torch.int64).subset(
        slice(0, 2)
    ).x.shape == (2, 4, 3)


def test_several_files(tmp_path):
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    paths = {"x": saved(tmp_path, x), "y": saved(tmp_path, y, "y.npy")}
    assert on_disk(paths).subset(torch.tensor([4, 1])).x["y"].tolist() == [4, 1]
    assert on_disk(tuple(paths.values())).subset(slice(1, 2)).x[0].tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="different numbers of rows"):
        on_disk((paths["x"], saved(tmp_path, y[:4], "z.npy")))


def damaged(folder, case):
    path = folder / "x.npy"
    if case == "empty":
        path.touch()
    elif case == "truncated":
        saved(folder, np.zeros((100, 5)))
        os.truncate(path, 1000)
    elif case == "text":
        path.write_text("not an array")
    elif case == "folder":
        path.mkdir()
    elif case != "missing":
        arrays = {
            "object": np.array([{}], dtype=object),
            "complex": np.zeros((3, 2), complex),
            "words": np.array(["a", "b"]),
            "record": np.zeros(3, "i4,f4"),
            "scalar": np.array(1.0),
            "no rows": np.zeros((0, 4)),
            "no columns": np.zeros((4, 0)),
        }
        saved(folder, arrays[case])
    return path


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", "there is no such file"),
        ("empty", "empty, truncated or damaged; write it again"),
        ("truncated", "empty, truncated or damaged; write it again"),
        ("text", "empty, truncated or damaged; write it again"),
        ("folder", "is a folder; give a file"),
        ("object", "pickled objects, which are not read; save"),
        ("complex", "numbers of type complex128"),
        ("words", "type <U1"),
        ("record", "save real numbers"),
        ("scalar", "save one datum a row"),
        ("no rows", "save one datum a row, and at least one"),
        ("no columns", "save one datum a row, and at least one"),
    ],
)
def test_unusable_files_are_refused(tmp_path, case, said):
    path = damaged(tmp_path, case)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        on_disk(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_paths_of_another_kind_are_refused(tmp_path):
    for source, said in (
        (tmp_path / "x.csv", "unknown kind of file"),
        (np.zeros(3), "source must be a path.*got array"),
        ("a\0.npy", "holds a NUL byte"),
        ((), "got no path"),
    ):
        with pytest.raises(ValueError, match=said):
            on_disk(source)


def test_numbers_beyond_the_type_are_refused(tmp_path):
    data = on_disk(saved(tmp_path, np.array([[1], [255], [300]])), dtype=torch.uint8)
    assert data.subset(slice(0, 2)).x.flatten().tolist() == [1, 255]
    with pytest.raises(
        ValueError, match=r"x\.npy: holds 300, which torch\.uint8 cannot hold"
    ):
        data.subset(slice(1, 3))
    with pytest.raises(ValueError, match="dtype must be a real"):
        on_disk(saved(tmp_path, np.zeros((3, 1))), dtype=torch.complex64)


def test_error_names_the_row_in_the_file(tmp_path):
    array = np.zeros((50, 3))
    array[17], array[30, 1] = np.nan, 1e300
    data = on_disk(saved(tmp_path, array))
    data.subset(torch.arange(17))
    with pytest.raises(ValueError, match=r"x\.npy: row 17 holds NaN"):
        data.subset(torch.tensor([2, 40, 17]))
    with pytest.raises(
        ValueError, match=r"row 30 holds NaN or infinity \(as torch\.float32\)"
    ):
        data.subset(slice(20, 40))


@pytest.mark.parametrize("change", ["shorter", "written", "removed"])
def test_a_file_that_changes_is_noticed(tmp_path, change):
    path = saved(tmp_path, np.zeros((5000, 3)))
    data = on_disk(path)
    if change == "shorter":
        os.truncate(path, 500)
    elif change == "written":
        os.utime(path, (0, 0))
    else:
        path.unlink()
    with pytest.raises(ValueError, match="was changed or removed"):
        data.subset(slice(4000, 4010))


def test_fingerprint_depends_on_contents_not_path(tmp_path):
    array = np.random.default_rng(0).normal(size=(1000, 3))
    (tmp_path / "b").mkdir()
    first = on_disk(saved(tmp_path, array)).fingerprint()
    assert on_disk(saved(tmp_path / "b", array, "other.npy")).fingerprint() == first
    changed = array.copy()
    changed[-1, 2] += 1
    others = [changed, array.astype(np.float32), array[:-1], array.reshape(500, 6)]
    assert (
        len(
            {
                first,
                *(on_disk(saved(tmp_path, other)).fingerprint() for other in others),
            }
        )
        == 5
    )


def test_evaluation_equals_that_of_data_in_memory(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(230, 6).round()
    path, lvm = saved(tmp_path, x.numpy()), VAE(data_dim=6, latent_dim=2)
    here, there = (
        vilvm.evaluate(lvm, data, num_samples=20, batch_size=64)
        for data in (Data(x), on_disk(path))
    )
    for name in ("elbo", "iwae"):
        assert torch.equal(here.bounds[name].values, there.bounds[name].values)
    whole = vilvm.evaluate(lvm, on_disk(path), num_samples=20, batch_size=500)
    assert torch.equal(
        whole.bounds["elbo"].values,
        vilvm.evaluate(lvm, x, num_samples=20, batch_size=500).bounds["elbo"].values,
    )


def test_transform_drawn_once_is_refused(tmp_path):
    path = saved(tmp_path, np.zeros((40, 6)))
    with pytest.raises(ValueError, match="drawn once for all data"):
        on_disk(path, transform=StaticBinarisation())
    with pytest.raises(ValueError, match="take some of them"):
        vilvm.evaluate(
            VAE(data_dim=6, latent_dim=2),
            on_disk(path, transform=DynamicBinarisation()),
            num_samples=2,
        )
    with pytest.raises(
        vilvm.ContractError, match=r"read in batches .* in place of a batch"
    ):
        vilvm.log_weights(VAE(data_dim=6, latent_dim=2), on_disk(path).x, 2)


def test_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = np.random.default_rng(0).normal(size=(101, 4, 2))
    stored = zarr.create_array(
        str(tmp_path / "x.zarr"), shape=array.shape, chunks=(10, 4, 2), dtype="f8"
    )
    stored[:] = array
    data, expected = (
        on_disk(tmp_path / "x.zarr"),
        torch.from_numpy(array.astype(np.float32).reshape(101, 8)),
    )
    for index in (slice(3, 19), torch.tensor([100, 2, 2, 57, -1])):
        assert torch.equal(data.subset(index).x, expected[index])
    assert data.fingerprint() == on_disk(tmp_path / "x.zarr").fingerprint()
    zarr.create_group(str(tmp_path / "g.zarr"))
    with pytest.raises(ValueError, match="cannot be read as a zarr array"):
        on_disk(tmp_path / "g.zarr")


def test_missing_zarr_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(ValueError, match="needs the package zarr; install it"):
        on_disk(tmp_path / "x.zarr")


LIMITED = """
import resource, sys
import numpy as np, torch, vilvm
from vilvm.models.vae import VAE
from vilvm.data.datasets import on_disk

lvm = VAE(8192, 2, encoder_hidden=(4,), decoder_hidden=(4,))
vilvm.fit(lvm, torch.zeros(8, 8192), batch_size=4, epochs=1)  # what is loaded late is loaded
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
used = int(status["VmData"].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 384 * 2**20, resource.RLIM_INFINITY))
data = on_disk(sys.argv[1])
print(vilvm.fit(lvm, data, batch_size=256, epochs=1).steps)
print(len(vilvm.evaluate(lvm, data, num_samples=1, batch_size=1000).bounds["elbo"].values))
try:
    np.load(sys.argv[1])
except MemoryError:
    print("too large to load")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(resource, "RLIMIT_DATA") or not Path("/proc/self/status").exists(),
    reason="needs Linux",
)
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Training and evaluation on 1 GiB in a process that may allocate 384 MiB."""
    path = tmp_path / "x.npy"
    # zeros, which take no disk space
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(2**15, 8192))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split("\n")[:3] == ["128", str(2**15), "too large to load"], (
        done.stderr
    )


def test_parquet_equals_the_frame(tmp_path):
    values = np.random.default_rng(0).normal(size=(230, 6)).round()
    frame = pd.DataFrame(values, [f"row {i}" for i in range(230)], list("abcdef"))
    frame["whole"] = np.arange(230)
    path = tmp_path / "x.parquet"
    frame.to_parquet(path, row_group_size=37)
    data = as_data(on_disk(path))
    expected = torch.from_numpy(frame.to_numpy("f4"))
    assert data.columns == tuple(frame.columns)
    assert data.name == "x"
    for index in (slice(30, 80), torch.tensor([200, 3, 3, -1]), slice(None)):
        part = data.subset(index)
        assert torch.equal(part.x, expected[index])
        assert list(part.index) == [f"row {i}" for i in np.arange(230)[index]]
    weights = []
    for some in (on_disk(path, columns=["b", "a"]), frame[["b", "a"]]):
        torch.manual_seed(0)
        lvm = VAE(data_dim=2, latent_dim=2, likelihood="gaussian")
        vilvm.fit(lvm, some, batch_size=50, epochs=1)
        weights.append(lvm.decoder[0].weight)
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match=r"has no column 'z'; it has \['a'"):
        on_disk(path, columns=["z"])
    with pytest.raises(ValueError, match="no names of columns"):
        on_disk(saved(tmp_path, values), columns=["a"])


def test_parquet_without_numbers_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    frame = pd.DataFrame({"a": [1.0, np.nan], "t": ["u", "v"]})
    frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"x\.parquet: column 't' holds no numbers"):
        on_disk(path)
    with pytest.raises(ValueError, match="values are missing: 1 in column 'a'"):
        on_disk(path, columns=["a"])
    path.write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match="cannot be read as a Parquet file"):
        on_disk(path)


@pytest.mark.parametrize("sparse", [False, True])
def test_h5ad_equals_data_in_memory(tmp_path, sparse):
    values = np.random.default_rng(0).poisson(0.5, (60, 5)).astype("f4")
    adata = anndata.AnnData(sp.csr_matrix(values) if sparse else values)
    adata.obs_names = [f"cell {i}" for i in range(60)]
    adata.write_h5ad(tmp_path / "x.h5ad")
    data = as_data(on_disk(tmp_path / "x.h5ad"))
    assert data.streamed
    for index in (slice(3, 9), torch.tensor([50, 3, 3, -1]), slice(None)):
        part = data.subset(index)
        assert torch.equal(part.x, torch.from_numpy(values)[index])
        assert list(part.index) == [f"cell {i}" for i in np.arange(60)[index]]
    lvm = VAE(data_dim=5, latent_dim=2, likelihood="gaussian")
    bounds = [
        vilvm.evaluate(lvm, d, num_samples=3, batch_size=25).bounds["elbo"].values
        for d in (data, torch.from_numpy(values))
    ]
    assert torch.equal(*bounds)
    (tmp_path / "bad.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"bad\.h5ad: cannot be read"):
        on_disk(tmp_path / "bad.h5ad")
