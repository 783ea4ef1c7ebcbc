"""The gallery, one model a file; a checkout has the files in its folder ``models``."""

from pathlib import Path

_checkout = Path(__file__).parents[2] / "models"
if _checkout.is_dir():
    __path__.append(str(_checkout))
