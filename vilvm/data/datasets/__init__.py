"""Data sets, one per file; most return a ``Dataset`` of three splits."""

from vilvm.data.datasets.arrays import arrays
from vilvm.data.datasets.cells import Cells, cells
from vilvm.data.datasets.dataset import Dataset, carve
from vilvm.data.datasets.digits import digits
from vilvm.data.datasets.documents import documents, topics_of_documents
from vilvm.data.datasets.frey_faces import frey_faces
from vilvm.data.datasets.mnist import mnist
from vilvm.data.datasets.on_disk import on_disk
from vilvm.data.datasets.pendulums import pendulums
from vilvm.data.datasets.posteriordb import ReferencePosterior, posteriordb
from vilvm.data.datasets.shapes import shape_factors, shapes
from vilvm.data.datasets.two_modes import TwoModes, two_modes

__all__ = [
    "Cells",
    "Dataset",
    "ReferencePosterior",
    "TwoModes",
    "arrays",
    "carve",
    "cells",
    "digits",
    "documents",
    "frey_faces",
    "mnist",
    "on_disk",
    "pendulums",
    "posteriordb",
    "shape_factors",
    "shapes",
    "topics_of_documents",
    "two_modes",
]
