"""A tracker that writes for MLflow."""

import time
from collections.abc import Mapping
from typing import Any

from vilvm._runtime.extras import require

__all__ = ["MLflow"]


class MLflow:
    """Sends the settings, numbers and figures of a run to a run of MLflow.

    Parameters of MLflow cannot change: those of a run that is continued keep their first values.

    Arguments:
        run: what ``mlflow.start_run()`` returns.

    Raises:
        ImportError: MLflow is not installed.

    Examples:
        A run with its hyper-parameters and curves::

            with mlflow.start_run() as run:
                fitted = vilvm.fit(lvm, x, epochs=10, tracker=MLflow(run))
    """

    def __init__(self, run: Any):
        require("mlflow", extra="mlflow")
        from mlflow import MlflowClient

        self.client, self.run_id = MlflowClient(), run.info.run_id

    def settings(self, values: Mapping[str, Any]) -> None:
        """Logs the settings that the run has not yet, as parameters."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        new = [Param(n, str(v)) for n, v in values.items() if n not in known]
        self.client.log_batch(self.run_id, params=new)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers as metrics."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        found = [Metric(n, v, now, step) for n, v in values.items()]
        self.client.log_batch(self.run_id, metrics=found)

    def figure(self, name: str, figure: Any) -> None:
        """Logs a figure as the artifact ``NAME.png``."""
        self.client.log_figure(self.run_id, figure, f"{name}.png")
