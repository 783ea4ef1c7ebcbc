"""Data sets: splits, transforms, and the folder of MNIST."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vilvm.data import Data, DynamicBinarisation, StaticBinarisation, as_data
from vilvm.data.datasets import arrays, digits, mnist

HAS_MNIST = (Path(os.environ.get("VILVM_DATA", "nowhere")) / "MNIST" / "raw").is_dir()


def test_digits():
    data = digits()
    assert [len(s) for s in data] == [1350, 150, 297]
    assert [s.split for s in data] == ["train", "validation", "test"]
    assert data.name == "digits"
    assert data.train.image_shape == (8, 8)
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1


def test_validation_is_carved_by_seed():
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    assert torch.equal(first.validation.x, again.validation.x)
    assert not torch.equal(first.validation.x, other.validation.x)
    rows = arrays(torch.arange(100.0)[:, None], validation=10)
    assert sorted(torch.cat([s.x for s in rows]).flatten().tolist()) == list(range(100))


def test_only_static_binarisation_is_drawn_once():
    grey = torch.full((50, 20), 0.5)
    assert torch.equal(StaticBinarisation(3)(grey), StaticBinarisation(3)(grey))
    assert not torch.equal(StaticBinarisation(3)(grey), StaticBinarisation(4)(grey))
    torch.manual_seed(0)
    assert not torch.equal(DynamicBinarisation()(grey), DynamicBinarisation()(grey))


def test_a_static_split_is_binary_and_stays_so():
    data = digits(transform=StaticBinarisation()).train
    assert set(data.x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.fixed().x, data.x)


def test_arrays_of_every_kind(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "faces.npy", pictures)
    np.savez(tmp_path / "more.npz", x=pictures)
    for source in (
        pictures,
        torch.from_numpy(pictures),
        tmp_path / "faces.npy",
        str(tmp_path / "more.npz"),
    ):
        data = arrays(source)
        assert data.train.x.shape == (33, 12)
        assert data.train.image_shape == (4, 3)
        assert data.train.x.max() <= 1
        assert (len(data.validation), len(data.test)) == (3, 4)
    assert arrays(tmp_path / "faces.npy").name == "faces"


def test_fingerprint_distinguishes_data_and_transforms():
    x = torch.zeros(3, 2)
    prints = {
        Data(x).fingerprint(),
        Data(x + 1).fingerprint(),
        Data(x.reshape(2, 3)).fingerprint(),
        Data(x, transform=DynamicBinarisation()).fingerprint(),
    }
    assert len(prints) == 4
    assert Data(x).fingerprint() == Data(x.clone(), name="other").fingerprint()


def test_data_of_several_tensors():
    data = as_data({"x": torch.arange(6.0).reshape(3, 2), "y": torch.arange(3)})
    assert len(data) == 3
    assert data.subset(torch.tensor([2, 0])).x["y"].tolist() == [2, 0]
    assert not Data((torch.zeros(2), torch.zeros(3))).divisible


@pytest.mark.skipif(not HAS_MNIST, reason="VILVM_DATA holds no MNIST")
def test_mnist():
    data = mnist()
    assert [len(s) for s in data] == [55_000, 5_000, 10_000]
    everything = torch.cat([data.train.x, data.validation.x])
    # the commonly quoted pixel mean and standard deviation
    assert everything.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert everything.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_without_a_network_fails_fast(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    began = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match=r"No MNIST in .*download failed.*MNIST/raw"
    ):
        mnist(tmp_path)
    assert time.monotonic() - began < 30
