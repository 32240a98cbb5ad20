"""An evaluation: of a checkpoint, or of the maps that some method has left.

Lightning and the model are imported for a checkpoint only: scoring maps begins without the seconds that they take.
"""

# ruff: noqa: PLC0415

from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from e2net.evaluation.predictions import PredictionJob, check_task, evaluation_files, prepare_predictions, scored_task
from e2net.evaluation.report import Scores, clear_report, report
from e2net.runs.config import check_evaluation
from e2net.runs.outputs import check_free, claim
from e2net.runs.provenance import weights_hash, write_environment

if TYPE_CHECKING:
    from e2net.evaluation.test import EvaluationJob

_ENVIRONMENT = "eval_environment.json"


def prepare_evaluation(config: dict[str, Any]) -> Union["EvaluationJob", PredictionJob]:
    """Rebuilds the model of a checkpoint and checks the test sets; or finds the maps that another run has left.

    Args:
        config: a resolved ``conf/eval.yaml``, see :func:`~e2net.runs.overrides.inherit`.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong; the message says what to do.
    """
    check_task(config)
    check_evaluation(config)
    task = scored_task(config)
    check_free("output", Path(config["output"]), evaluation_files(config["predictions"] is None, task.extra_files))
    if config["predictions"] is not None:
        return prepare_predictions(config, task)
    from e2net.evaluation.test import prepare_test

    return prepare_test(config, task)


def evaluate(job: Union["EvaluationJob", PredictionJob]) -> Scores:
    """Scores the test sets, prints the table and writes the report, ``<output>/scores.json`` last.

    A score file of an earlier evaluation in the same folder is removed first.

    Returns:
        {test set: {score: value}}, fractions; also "<test set> (binarised)" where that was asked for.

    Raises:
        UnusableMapsError: a map on disk cannot be read.
    """
    task = job.task if isinstance(job, PredictionJob) else job.module.task
    claim(job.output, evaluation_files(not isinstance(job, PredictionJob), task.extra_files))
    if isinstance(job, PredictionJob):
        write_environment(job.output / _ENVIRONMENT, "cpu")
        clear_report(job.output, extra=task.extra_files)
        about = {"predictions": str(job.folder)}
        return report(job.output, job.score(), job.method, about, job.options.bootstrap_seed)
    from e2net.evaluation.test import test

    if job.trainer.is_global_zero:
        write_environment(
            job.output / _ENVIRONMENT,
            job.trainer.strategy.root_device,
            encoder_sha256=weights_hash(job.module.model.encoder),
            checkpoint_sha256=job.checkpoint_sha256,
        )
    return test(job, "scores")
