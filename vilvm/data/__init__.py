"""Data: one split of a data set, its transforms and corruptions; data sets are in ``datasets``."""

from vilvm.data._column_names import ColumnNames, training_columns
from vilvm.data.corruptions import (
    BlockMasking,
    Blur,
    Corrupted,
    GaussianNoise,
    HalfErasure,
    PixelErasure,
)
from vilvm.data.data import Data, Transform, as_data
from vilvm.data.from_anndata import from_anndata
from vilvm.data.interleaved import Interleaved
from vilvm.data.missing import Masked, with_missing
from vilvm.data.sequences import padded
from vilvm.data.streamed import StreamedTensor
from vilvm.data.transforms import Chain, DynamicBinarisation, StaticBinarisation

__all__ = [
    "BlockMasking",
    "Blur",
    "Chain",
    "ColumnNames",
    "Corrupted",
    "Data",
    "DynamicBinarisation",
    "GaussianNoise",
    "HalfErasure",
    "Interleaved",
    "Masked",
    "PixelErasure",
    "StaticBinarisation",
    "StreamedTensor",
    "Transform",
    "as_data",
    "from_anndata",
    "padded",
    "training_columns",
    "with_missing",
]
