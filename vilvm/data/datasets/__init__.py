"""Data sets, one per file; most return a ``Dataset`` of three splits."""

from vilvm.data.datasets.arrays import arrays
from vilvm.data.datasets.dataset import Dataset, carve
from vilvm.data.datasets.digits import digits
from vilvm.data.datasets.mnist import mnist
from vilvm.data.datasets.on_disk import on_disk
from vilvm.data.datasets.posteriordb import ReferencePosterior, posteriordb
from vilvm.data.datasets.shapes import shape_factors, shapes
from vilvm.data.datasets.two_modes import TwoModes, two_modes

__all__ = [
    "Dataset",
    "ReferencePosterior",
    "TwoModes",
    "arrays",
    "carve",
    "digits",
    "mnist",
    "on_disk",
    "posteriordb",
    "shape_factors",
    "shapes",
    "two_modes",
]
