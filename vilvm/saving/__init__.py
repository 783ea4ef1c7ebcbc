"""Saving a model in one file, and loading it in another process or on another device.

The file is in the format safetensors: the parameters under their own names, so that any reader of
safetensors opens it, and a description as JSON in its metadata. Nothing is pickled, and loading
runs no code but vilvm's own constructors and the model that the caller passes.
"""

from vilvm.saving.load import load
from vilvm.saving.save import save
from vilvm.saving.saved_model import SavedModel, describe

__all__ = ["SavedModel", "describe", "load", "save"]
