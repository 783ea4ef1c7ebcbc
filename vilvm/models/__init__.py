"""The gallery, one file a model: in a checkout, the files of the folder ``models`` at its top."""

from pathlib import Path

_checkout = Path(__file__).parents[2] / "models"
if _checkout.is_dir():
    __path__.append(str(_checkout))
