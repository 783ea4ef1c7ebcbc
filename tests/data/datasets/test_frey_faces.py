"""Frey faces: the frames on disk, their splits, and files that are missing or wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vilvm.data.datasets import frey_faces

FILE = Path("freyfaces") / "freyfaces_uint8_1965x28x20.npy"
HAS_FACES = (Path(os.environ.get("VILVM_DATA", "nowhere")) / FILE).is_file()


@pytest.fixture
def folder(tmp_path):
    """A folder with a file of random frames."""
    (tmp_path / FILE).parent.mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    np.save(tmp_path / FILE, frames)
    return tmp_path


@pytest.mark.skipif(not HAS_FACES, reason="VILVM_DATA holds no Frey faces")
def test_faces_have_their_grey_levels():
    everything = torch.cat([split.x for split in frey_faces()])
    assert everything.shape == (1965, 560)
    assert everything.min() * 255 == 8
    assert everything.max() * 255 == 238


def test_splits_hold_every_frame_once(folder):
    data, other = frey_faces(folder), frey_faces(folder, validation=100, seed=1)
    assert [len(split) for split in data] == [1565, 200, 200]
    assert [len(split) for split in other] == [1665, 100, 200]
    assert torch.equal(data.test.x, other.test.x)
    assert data.train.image_shape == (28, 20)
    rows = torch.cat([split.x for split in data])
    assert len(rows.unique(dim=0)) == 1965
    frames = torch.from_numpy(np.load(folder / FILE)).flatten(1).float() / 255
    torch.testing.assert_close(rows.sort(0).values, frames.sort(0).values)


def test_missing_file_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("VILVM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"No Frey faces in .*freyfaces_uint8"):
        frey_faces()


@pytest.mark.parametrize(
    "frames", [np.zeros((10, 28, 20), np.uint8), np.zeros((1965, 28, 20), np.float32)]
)
def test_other_data_in_the_file_are_refused(folder, frames):
    np.save(folder / FILE, frames)
    with pytest.raises(ValueError, match="instead of uint8 of shape"):
        frey_faces(folder)


def test_truncated_file_is_refused(folder):
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        frey_faces(folder)
