"""Files that are damaged, forged, foreign or of the future are refused in one sentence."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import vilvm
from vilvm.models.ppca import PPCA
from vilvm.models.vae import VAE
from vilvm.saving import _file


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    return vilvm.save(VAE(6, 2, encoder_hidden=(8,)), tmp_path / "vae.safetensors")


def metadata(path):
    blob = path.read_bytes()
    end = 8 + int.from_bytes(blob[:8], "little")
    return json.loads(blob[8:end])["__metadata__"]


def rewrite(path, *, forged=True, **changes):
    """Changes entries of the description; a forger computes the checksum anew."""
    tensors, found = load(path.read_bytes()), metadata(path)
    description = json.loads(found["vilvm"]) | changes
    text = json.dumps({n: v for n, v in description.items() if v != "removed"})
    total = _file._checksum(text, tensors) if forged else found["sha256"]
    path.write_bytes(save(tensors, {"vilvm": text, "sha256": total}))


def refusal(path, lvm=None):
    with pytest.raises((vilvm.CheckpointError, vilvm.ContractError)) as caught:
        vilvm.load(path, lvm)
    message = str(caught.value)
    assert len(message.split()) < 45
    assert "\n" not in message
    return message


def test_missing_file_and_folder(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "no.safetensors")
    assert "holds no checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, 5000, -1])
def test_truncated_file(path, length):
    path.write_bytes(path.read_bytes()[:length])
    assert "is truncated, or no file of vilvm.save" in refusal(path)


def test_pickle_is_never_opened(path):
    torch.save(VAE(6, 2), path)
    assert "no file of vilvm.save" in refusal(path)


def test_other_safetensors_file(path):
    path.write_bytes(save({"weight": torch.zeros(2)}))
    assert "is not a model of vilvm" in refusal(path)


def test_any_altered_byte_of_a_tensor(path):
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)
    assert "its checksum differs" in refusal(path)


def test_altered_description(path):
    rewrite(path, forged=False, saved="2020-01-01")
    assert "its checksum differs" in refusal(path)


def test_future_version(path):
    rewrite(path, version=2, versions={"vilvm": "9.9"})
    assert "use the vilvm that wrote it (9.9)" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class": 3}, "'class' of its description is not a string"),
        ({"frozen": [1]}, "'frozen' of its description is not a list of names"),
        ({"state": "removed"}, "its description has no entry 'state'"),
        ({"hook": "x"}, "has an unknown entry 'hook'"),
        ({"format": "other"}, "is not that of a model"),
        ({"state": ["W"]}, "its parameters are incomplete"),
        ({"state": []}, "lacks 'decoder.0.bias', 'decoder.0.weight'"),
        ({"extra": {"!": "counter"}}, "its parameters are incomplete"),
        ({"recipe": {"!": "tuple", "items": 3}}, "its recipe is not one"),
        ({"recipe": {"arguments": {}}}, "its recipe is not one"),
    ],
)
def test_forged_description(path, changes, message):
    rewrite(path, **changes)
    assert message in refusal(path)


@pytest.mark.parametrize(
    "maker",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "vilvm.models.vae.torch.hub.load",
        "vilvm.models...os.system",
        "vilvm.models.vae.os",
        "vilvm.training.fit.fit",
        "vilvm._runtime.files.write_json",
        "vilvm.models.no_such.Model",
        "tests.saving.test_refusals.Trap",
        "torch.nn.modules.activation.Tanh",
        "vilvm.models.vae.tiny",
        "",
    ],
)
def test_forged_class_is_not_looked_up(path, maker):
    rewrite(path, recipe={"!recipe": maker, "arguments": {}})
    message = refusal(path)
    assert (
        "is not a class or function of vilvm" in message or "makes no model" in message
    )
    assert not Trap.made


class Trap(nn.Module):
    made = False

    def __init__(self):
        super().__init__()
        Trap.made = True


def test_forged_argument_is_not_looked_up(path):
    named = {"!name": "os.system"}
    recipe = {"!recipe": "vilvm.models.vae.VAE", "arguments": {"network": named}}
    rewrite(path, recipe=recipe)
    assert "'os.system' is not a class or function of vilvm" in refusal(path)


@pytest.mark.parametrize(
    "arguments", [{"no_such": 1}, {"data_dim": "six"}, {"data_dim": -1}]
)
def test_arguments_that_do_not_fit(path, arguments):
    rewrite(path, recipe={"!recipe": "vilvm.models.vae.VAE", "arguments": arguments})
    assert "does not take the arguments in the file" in refusal(path)


def test_model_of_other_sizes_is_unchanged(path):
    lvm = VAE(6, 3, encoder_hidden=(8,))
    before = {n: v.clone() for n, v in lvm.state_dict().items()}
    assert "has shape (2,) in" in refusal(path, lvm) or "has shape" in refusal(
        path, lvm
    )
    assert all(torch.equal(v, before[n]) for n, v in lvm.state_dict().items())


def test_model_of_another_class(path):
    message = refusal(path, PPCA(6, 2))
    assert "lacks 'V', 'W', 'b' and 2 more" in message
    assert "has 'decoder.0.bias'" in message


def test_bad_arguments_of_save_and_load(path, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        vilvm.save(PPCA(6, 2), tmp_path)
    with pytest.raises(ValueError, match="save: path must be"):
        vilvm.save(PPCA(6, 2), 3)
    with pytest.raises(vilvm.ContractError, match="no method model"):
        vilvm.save(nn.Linear(2, 2), tmp_path / "linear")
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        vilvm.load(path, device="abacus")
    with pytest.raises(
        vilvm.ContractError, match="Trap does not declare its arguments"
    ):
        vilvm.load(path, Trap)


def test_an_interrupted_save_keeps_the_old_file(path, monkeypatch):
    before = hashlib.sha256(path.read_bytes()).hexdigest()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="make room there"):
        vilvm.save(VAE(6, 2), path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
