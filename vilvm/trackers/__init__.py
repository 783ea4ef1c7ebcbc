"""Trackers: settings, curves and figures of runs in TensorBoard, MLflow or Weights & Biases."""

from vilvm.trackers.mlflow import MLflow
from vilvm.trackers.tensorboard import TensorBoard
from vilvm.trackers.tracker import Tracker
from vilvm.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB"]
