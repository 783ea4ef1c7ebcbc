"""Batches on disk equal those in memory, and reading ahead ends with the run."""

import threading

import numpy as np
import pytest
import torch

import vilvm
from vilvm.data import Data, DynamicBinarisation
from vilvm.data.datasets import on_disk
from vilvm.models.vae import VAE
from vilvm.training._batches import Batches
from vilvm.training._prefetch import Prefetched


@pytest.fixture
def x():
    return torch.rand(103, 6, generator=torch.Generator().manual_seed(0)).round()


@pytest.fixture
def path(tmp_path, x):
    np.save(tmp_path / "x.npy", x.numpy())
    return tmp_path / "x.npy"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [
        t.name for t in threading.enumerate() if t.name.startswith("vilvm-prefetch")
    ]


def trained(data, **options):
    torch.manual_seed(3)
    lvm = VAE(data_dim=6, latent_dim=2)
    fitted = vilvm.fit(lvm, data, **{"batch_size": 16, "epochs": 4, **options})
    return fitted, lvm.state_dict()


def same(first, second):
    return all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("size", [16, 50, 103])
def test_batches_do_not_depend_on_data_location(x, path, size):
    memory, disk = Batches(Data(x), size, seed=5), Batches(on_disk(path), size, seed=5)
    for step in (0, 0, 1, 2, 3, 40, 7, 8, 9, 6, 6, 0):
        assert torch.equal(memory(step), disk(step))
    disk.close()


@pytest.mark.parametrize("transform", [None, DynamicBinarisation()])
def test_training_from_disk_equals_training_in_memory(x, path, transform):
    if transform is not None:
        x = 0.2 + 0.6 * x
        np.save(path, x.numpy())
    here, there = (
        trained(Data(x, transform=transform)),
        trained(on_disk(path, transform=transform)),
    )
    assert same(here[1], there[1])
    assert [r.elbo for r in here[0].history] == [r.elbo for r in there[0].history]


@pytest.mark.slow
def test_compiled_training_from_disk_equals_memory(x, path):
    assert same(
        trained(Data(x), compile=True)[1], trained(on_disk(path), compile=True)[1]
    )


def test_resumed_run_from_disk_equals_memory(x, path, tmp_path):
    trained(on_disk(path), steps=11, epochs=None, run_dir=tmp_path / "run")
    assert same(
        trained(on_disk(path), run_dir=tmp_path / "run", resume=True)[1],
        trained(Data(x))[1],
    )


def test_validation_on_disk_equals_memory(x, path):
    here, there = (
        trained(Data(x), validation=x),
        trained(on_disk(path), validation=on_disk(path)),
    )
    assert [r.validation_elbo for r in here[0].history] == [
        r.validation_elbo for r in there[0].history
    ]
    assert same(here[1], there[1])


def test_batches_are_read_ahead_to_a_limit():
    read = []
    batches = Prefetched(lambda step: read.append(step) or step)
    assert [batches(step) for step in range(3)] == [0, 1, 2]
    batches.close()
    assert read == list(range(len(read)))
    assert 3 <= len(read) <= 7


def test_bad_row_ends_the_run_with_its_message(x, tmp_path):
    x[77, 2] = torch.nan
    np.save(tmp_path / "bad.npy", x.numpy())
    with pytest.raises(ValueError, match=r"bad\.npy: row 77 holds NaN"):
        trained(on_disk(tmp_path / "bad.npy"))


def test_interruption_ends_reading_ahead(path):
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(on_disk(path), epochs=200, callbacks=[interrupt])


def test_data_on_disk_need_a_batch_size(path):
    with pytest.raises(ValueError, match="give batch_size="):
        trained(on_disk(path), batch_size=None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_sent_to_the_gpu(x, path):
    batches = Batches(on_disk(path).to("cuda"), 16, seed=5)
    memory = Batches(Data(x), 16, seed=5)
    for step in range(20):
        assert batches(step).device.type == "cuda"
        assert torch.equal(batches(step).cpu(), memory(step))
    batches.close()


def test_data_by_index_equal_their_subset():
    data = vilvm.Data(
        (torch.randn(6, 2), {"y": torch.arange(6)}), labels=torch.arange(6)
    )
    index = torch.tensor([4, 0, 4])
    found, expected = data.take(index), data.subset(index)
    assert torch.equal(found.x[0], expected.x[0])
    assert torch.equal(found.x[1]["y"], expected.x[1]["y"])
    assert found.labels is None
