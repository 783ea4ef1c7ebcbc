"""A tracker that writes for Weights & Biases."""

import io
from collections.abc import Mapping
from typing import Any

from vilvm._runtime.extras import require

__all__ = ["WandB"]


class WandB:
    """Sends the settings, numbers and figures of a run to a run of Weights & Biases.

    The axis of the curves is the metric ``step``, the steps of training.

    Arguments:
        run: what ``wandb.init()`` returns.

    Raises:
        ImportError: wandb is not installed.

    Examples:
        A run with its hyper-parameters and curves::

            with wandb.init(project="digits", mode="offline") as run:
                fitted = vilvm.fit(lvm, x, epochs=10, tracker=WandB(run))
    """

    def __init__(self, run: Any):
        require("wandb", extra="wandb")
        self.run = run
        run.define_metric("*", step_metric="step")

    def settings(self, values: Mapping[str, Any]) -> None:
        """Adds the settings to the configuration of the run."""
        self.run.config.update(dict(values), allow_val_change=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers together."""
        # wandb's own `step` must never fall, as after a resumption from an older checkpoint.
        self.run.log({"step": step, **values})

    def figure(self, name: str, figure: Any) -> None:
        """Logs a figure as an image."""
        import PIL.Image
        from wandb import Image

        # wandb does not take subclasses of matplotlib's Figure, as those of vilvm.plots.
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        self.run.log({name: Image(PIL.Image.open(picture))})
