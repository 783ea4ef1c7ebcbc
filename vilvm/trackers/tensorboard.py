"""A tracker that writes for TensorBoard."""

from collections.abc import Mapping
from typing import Any

__all__ = ["TensorBoard"]


class TensorBoard:
    """Sends the settings, numbers and figures of a run to a writer of TensorBoard.

    The settings are in the tab HPARAMS. All is flushed to disk at once.

    Arguments:
        writer: a ``torch.utils.tensorboard.SummaryWriter``.

    Examples:
        A run with its hyper-parameters and curves::

            with SummaryWriter("runs/first") as writer:
                fitted = vilvm.fit(lvm, x, epochs=10, tracker=TensorBoard(writer))
    """

    def __init__(self, writer: Any):
        self.writer = writer

    def settings(self, values: Mapping[str, Any]) -> None:
        """Writes the settings as hyper-parameters."""
        from torch.utils.tensorboard.summary import hparams

        # ``SummaryWriter.add_hparams`` would write them to a folder of their own.
        known = {name: value for name, value in values.items() if value is not None}
        for summary in hparams(known, {}):
            self.writer.file_writer.add_summary(summary)
        self.writer.flush()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes numbers as scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def figure(self, name: str, figure: Any) -> None:
        """Writes a figure as an image."""
        self.writer.add_figure(name, figure, close=False)
        self.writer.flush()
