"""Data sets: one file each, all returning the same ``Dataset``."""

from vilvm.datasets.arrays import arrays
from vilvm.datasets.corruptions import BlockMasking, Blur, Corrupted, GaussianNoise, HalfErasure, PixelErasure
from vilvm.datasets.dataset import Dataset, carve
from vilvm.datasets.digits import digits
from vilvm.datasets.mnist import mnist
from vilvm.datasets.on_disk import on_disk
from vilvm.datasets.posteriordb import ReferencePosterior, posteriordb
from vilvm.datasets.transforms import Chain, DynamicBinarisation, StaticBinarisation
from vilvm.datasets.two_modes import TwoModes, two_modes

__all__ = [
    "BlockMasking",
    "Blur",
    "Chain",
    "Corrupted",
    "Dataset",
    "DynamicBinarisation",
    "GaussianNoise",
    "HalfErasure",
    "PixelErasure",
    "ReferencePosterior",
    "StaticBinarisation",
    "TwoModes",
    "arrays",
    "carve",
    "digits",
    "mnist",
    "on_disk",
    "posteriordb",
    "two_modes",
]
