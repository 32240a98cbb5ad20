"""Where the curves of a run go, beside ``metrics.csv``, which every run has."""

import importlib.util
import os
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger


class RunLogger:
    """Opens a logger for a run; the ``logger`` group of its config makes one of these."""

    def open(self, output: Path, step: int) -> Logger | None:
        """The logger of a run that begins at an optimiser step, in its folder; None: nothing but ``metrics.csv``."""
        raise NotImplementedError


class Csv(RunLogger):
    """``metrics.csv`` alone."""

    def open(self, output: Path, step: int) -> Logger | None:
        return None


class TensorBoard(RunLogger):
    """Curves for TensorBoard, in ``tensorboard/`` of the run folder."""

    def open(self, output: Path, step: int) -> Logger | None:
        # What an interrupted run has logged beyond the step is not shown.
        return TensorBoardLogger(output, name="tensorboard", version="", purge_step=step)


class Wandb(RunLogger):
    """Curves for Weights & Biases, which is an extra: ``pip install 'e2net[wandb]'``.

    Args:
        project: where the run is listed.
        offline: keep everything in ``wandb/`` of the run folder; ``wandb sync`` sends it later.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(self, project: str = "e2net", offline: bool = False) -> None:
        _need("wandb")
        self.project, self.offline = project, offline

    def open(self, output: Path, step: int) -> Logger | None:
        return WandbLogger(output.name, output, offline=self.offline, project=self.project)


class MLflow(RunLogger):
    """Curves for MLflow, which is an extra: ``pip install 'e2net[mlflow]'``.

    Args:
        experiment: where the run is listed.
        tracking_uri: of a server or a store; None: files in the run folder.

    Raises:
        ValueError: MLflow is not installed.
    """

    def __init__(self, experiment: str = "e2net", tracking_uri: str | None = None) -> None:
        _need("mlflow")
        self.experiment, self.tracking_uri = experiment, tracking_uri

    def open(self, output: Path, step: int) -> Logger | None:
        uri = self.tracking_uri
        if uri is None:
            # It would rather have a data base, which needs more packages; files are all that one run asks for.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (output / "mlruns").resolve().as_uri()
        return MLFlowLogger(self.experiment, output.name, uri)


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"logger={package}: expected the package {package}, found none; pip install 'e2net[{package}]'"
        )
