"""Loads all models of a folder, and prints their numbers: ``python loading_process.py FOLDER``."""

import hashlib
import json
import sys
from pathlib import Path

import torch

import vilvm


def numbers(lvm, batch):
    """A digest of parameters and buffers, and an evaluation."""
    found = vilvm.evaluate(lvm, batch, num_samples=10, progress=False).to_dict()
    digest = hashlib.sha256()
    for name, value in sorted(lvm.state_dict().items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return {"state": digest.hexdigest(), "evaluation": found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {}
    for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        batch = torch.load(path.with_suffix(".batch"), weights_only=True)
        results[path.stem] = numbers(vilvm.load(path), batch)
    print(json.dumps(results))
