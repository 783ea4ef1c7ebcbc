"""Reference posteriors are read unchanged; missing or damaged files raise."""

import json

import numpy as np
import pytest
import torch

from vilvm.data.datasets import posteriordb

DRAWS = np.arange(10_000, dtype=np.float32).reshape(10, 1000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a-b.data.json").write_text(
        json.dumps({"N": 2, "x": [[1, 2], [3, 4]], "s": 0.5})
    )
    np.savez(tmp_path / "a-b.draws.npz", **{"beta[1]": DRAWS})
    return tmp_path


def test_data_and_draws_are_read(folder):
    found = posteriordb("a-b", folder)
    assert (found.name, found.data["N"], found.data["s"]) == ("a-b", 2, 0.5)
    assert torch.equal(found.data["x"], torch.tensor([[1.0, 2], [3, 4]]))
    assert torch.equal(found.draws["beta[1]"], torch.from_numpy(DRAWS).double())
    assert found.mean("beta[1]") == DRAWS.mean(dtype=np.float64)
    assert found.sd("beta[1]") == pytest.approx(DRAWS.std(ddof=1, dtype=np.float64))


def test_environment_variable_names_the_folder(folder, monkeypatch):
    monkeypatch.setenv("VILVM_DATA", str(folder.parent))
    folder.rename(folder.parent / "posteriordb")
    assert posteriordb("a-b").data["N"] == 2


def test_missing_file_is_named(folder, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"No posterior 'c' in .* \(c.data.json is not there\): there are \['a-b'\]",
    ):
        posteriordb("c", folder)
    with pytest.raises(
        FileNotFoundError, match="point VILVM_DATA at a folder that holds posteriordb/"
    ):
        posteriordb("a-b", tmp_path / "nowhere")
    (folder / "a-b.draws.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"a-b\.draws\.npz is not there"):
        posteriordb("a-b", folder)


@pytest.mark.parametrize(
    "text", ['{"N": [1, 2', "[1]", '{"N": "two"}', '{"x": [[1], [2, 3]]}', ""]
)
def test_damaged_data_are_refused(folder, text):
    (folder / "a-b.data.json").write_text(text)
    with pytest.raises(ValueError, match=r"a-b\.data\.json is truncated or altered"):
        posteriordb("a-b", folder)


@pytest.mark.parametrize("kept", [0, 100, 10_000, -10])
def test_truncated_draws_are_refused(folder, kept):
    path = folder / "a-b.draws.npz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a-b\.draws\.npz is truncated or altered"):
        posteriordb("a-b", folder)


def test_pickled_draws_are_refused(folder):
    np.savez(folder / "a-b.draws.npz", **{"beta[1]": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"a-b\.draws\.npz is truncated or altered"):
        posteriordb("a-b", folder)


def test_draws_of_another_shape_are_refused(folder):
    np.savez(folder / "a-b.draws.npz", **{"beta[1]": DRAWS[0]})
    with pytest.raises(
        ValueError, match=r"not finite draws of shape \(num_chains, num_draws\)"
    ):
        posteriordb("a-b", folder)


@pytest.mark.parametrize(
    "name",
    [
        "eight_schools-eight_schools_noncentered",
        "hmm_example-hmm_example",
        "low_dim_gauss_mix-low_dim_gauss_mix",
        "kidiq-kidscore_momiq",
        "sblri-blr",
        "arK-arK",
    ],
)
def test_real_posteriors_are_read(name):
    try:
        found = posteriordb(name)
    except FileNotFoundError:
        pytest.skip("posteriordb is not on this machine (VILVM_DATA)")
    assert {tuple(d.shape) for d in found.draws.values()} == {(10, 1000)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"y": [1.0, NaN]}', "it holds NaN"),
        ('{"y": -Infinity}', "it holds -Infinity"),
        (f'{{"y": [1{"0" * 400}]}}', "'y' is not a finite number, or an array of them"),
        ('{"y": 1e400}', "'y' is not a finite number"),
        (f'{{"y": {"1" * 5000}}}', "truncated or altered"),
        ('{"y": ' + "[" * 200_000 + "}", "nested too deeply"),
        ("[1]", "holds no names with values"),
    ],
)
def test_data_that_are_no_numbers_are_refused(folder, content, words):
    (folder / "a-b.data.json").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        posteriordb("a-b", folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "draws",
    [
        np.zeros((0, 4)),
        np.ones((2, 3)) + 1j,
        np.ones((2, 3), dtype=bool),
        np.full((2, 3), np.nan),
        np.ones(4),
    ],
)
def test_draws_that_are_no_numbers_are_refused(folder, draws):
    np.savez(folder / "a-b.draws.npz", mu=draws)
    with pytest.raises(
        ValueError, match=r"'mu' is not finite draws of shape \(num_chains, num_draws\)"
    ):
        posteriordb("a-b", folder)
