"""From a checkpoint to a file that was shown to score the same, or to none."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from e2net.arguments import output_folder
from e2net.datasets import DenseData
from e2net.export.calibration import find_pictures, read_pictures, training_pictures
from e2net.export.cost import Cost, peak_memory, processor_instructions, time_in_turns
from e2net.export.formats import Asked, Run, run_of
from e2net.export.metadata import metadata_of
from e2net.export.network import OnePass
from e2net.export.parity import Parity, compare_runs
from e2net.export.settings import ExportSettings
from e2net.export.table import document, print_table
from e2net.files import part_of, write_atomically
from e2net.runs import build_data, compose_evaluation, load_model
from e2net.runs.checkpoint import find_checkpoint, trained_with
from e2net.runs.outputs import check_free, claim
from e2net.runs.provenance import file_hash
from e2net.structures import NotFiniteError


class DifferentError(Exception):
    """A file does not do as its model did; it was not kept."""


@dataclass
class ExportJob:
    """All that an export needs, built and checked; nothing has been written.

    Attributes:
        settings: what was asked for.
        checkpoint: the file.
        network: one pass of the model, in float32.
        config: the resolved config of its training.
        data: of the test sets.
        output: the folder for the file.
    """

    settings: ExportSettings
    checkpoint: Path
    network: OnePass
    config: dict[str, Any]
    data: DenseData
    output: Path

    def patterns(self) -> list[str]:
        """Names of what is written."""
        file = Path(self.settings.file_name())
        return [*self.settings.kind().files(file.stem), f"{file.name}.json"]


def prepare_export(settings: ExportSettings) -> ExportJob:
    """Rebuilds the model of a checkpoint and checks test sets, packages and the place for the file.

    Raises:
        ValueError, FileNotFoundError: a setting, a file, a package or the data is wrong.
    """
    settings.check_packages()
    output = output_folder(settings.output, "export")
    checkpoint = find_checkpoint(settings.ckpt)
    quoted = {"ckpt": json.dumps(str(checkpoint)), "output": json.dumps(str(output))}
    sides = settings.sides()
    size = [] if sides is None else [f"size={list(sides)}"]
    given = [*(f"{key}={value}" for key, value in quoted.items()), *size, *settings.overrides]
    evaluation = compose_evaluation(given)
    model, config = load_model(checkpoint, settings.encoder_path)
    data = build_data(evaluation["data"], model.task)
    model.encoder.check_size(*data.size)
    data.check("test")
    if settings.calibration is not None:
        find_pictures(settings.calibration)
    elif settings.precision == "int8":
        data.source("train").check()
    sharpen = trained_with(config, "sharpen") if settings.sharpen is None else settings.sharpen
    if sharpen != 1 and not model.task.objects:
        raise ValueError(f"sharpen={sharpen:g}: task={model.task.name} has no probability of objects; leave it out")
    job = ExportJob(settings, checkpoint, OnePass(model, sharpen).eval(), config, data, output)
    check_free("output", output, job.patterns())
    return job


def export(job: ExportJob) -> Path:
    """Writes the file, compares it with the model and prints the table.

    Returns:
        The file.

    Raises:
        DifferentError: it was beyond a tolerance, and nothing was kept.
        ValueError: the model cannot be exported so.
    """
    threads = job.settings.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    made = not job.output.exists()
    job.output.mkdir(parents=True, exist_ok=True)
    folder = part_of(job.output / "model")
    folder.mkdir()
    try:
        file = _write(job, folder)
        run = _open(job, file, threads)
        results = _compared(job, run)
        _report(job, file, results, _costs(job, file, run, threads))
        check_free("output", job.output, job.patterns())  # again: what has come meanwhile is somebody else's
        claim(job.output, job.patterns())
        for one in sorted(folder.iterdir(), key=lambda path: path.suffix == ".json"):
            one.replace(job.output / one.name)
    finally:
        shutil.rmtree(folder)
        if made and not any(job.output.iterdir()):
            job.output.rmdir()
    return job.output / file.name


def _compared(job: ExportJob, run: Run) -> list[Parity]:
    try:
        return compare_runs(run_of(job.network), run, job.data, job.network.model.task, job.settings.pictures)
    except NotFiniteError as error:
        raise DifferentError(f"{error}. Nothing was kept") from error


def _open(job: ExportJob, file: Path, threads: int) -> Run:
    return job.settings.kind().open(file, threads)


def _write(job: ExportJob, folder: Path) -> Path:
    """The file of the format asked for, in a folder."""
    settings, network, sides = job.settings, job.network, job.settings.sides()
    about = metadata_of(network, job.config, file_hash(job.checkpoint), sides)
    about["precision"] = settings.precision
    if settings.precision == "fp16":
        network = OnePass(network.model, network.sharpen, torch.float16).eval()
    asked = Asked(
        network,
        sides,
        job.data.size,
        settings.precision,
        lambda: _calibration(job),
        job.checkpoint,
        settings.encoder_path,
        job.output.resolve().name,
    )
    file = folder / settings.file_name()
    settings.kind().write(asked, file, about)
    return file


def _calibration(job: ExportJob) -> Iterator[NDArray[np.uint8]]:
    count, size = job.settings.calibration_pictures, job.data.size
    if job.settings.calibration is None:
        return training_pictures(job.data, size, count)
    return read_pictures(find_pictures(job.settings.calibration), size, count)


def _costs(job: ExportJob, file: Path, run: Run, threads: int) -> list[Cost]:
    """Of the model and of the file; none where they are not to be measured."""
    if not job.settings.measure:
        return []
    samples: Any = job.data.test_dataloader()[0].dataset
    images = [np.ascontiguousarray(samples[i].image[None].numpy()) for i in range(min(4, len(samples)))]
    times = time_in_turns([run_of(job.network), run], images)
    size, moved = job.data.size, job.settings.encoder_path
    memory = (
        peak_memory(job.checkpoint, size, threads, encoder_path=moved),
        peak_memory(file, size, threads, job.settings.format),
    )
    return [Cost(*time, one) for time, one in zip(times, memory, strict=True)]


def _report(job: ExportJob, file: Path, results: Sequence[Parity], costs: Sequence[Cost]) -> None:
    """Prints table and verdict, and writes the figures beside the file.

    Raises:
        DifferentError: something is beyond its tolerance.
    """
    task, settings = job.network.model.task, job.settings
    weights = sum(t.nbytes for t in (*job.network.parameters(), *job.network.buffers()))
    ending = settings.kind().beside
    beside = [] if ending is None else [file.with_name(file.stem + ending)]
    sizes = [weights, sum(one.stat().st_size for one in (file, *beside) if one.is_file())]
    print_table(file.name, results, sizes, costs, task)
    if costs:
        height, width = job.data.size
        threads = torch.get_num_threads()
        print(f"{height}x{width}, {threads} thread{'s'[: threads - 1]}; 8-bit instructions: {processor_instructions()}")
    difference, loss = settings.tolerances()
    faults = [fault for one in results for fault in one.faults(task, difference, loss)]
    if faults:
        raise DifferentError(f"{'; '.join(faults)}. Nothing was kept. See max_difference, max_loss and precision")
    figures = document(results, sizes, costs) | {"tolerances": {"difference": difference, "loss": loss}}
    write_atomically(file.with_name(f"{file.name}.json"), json.dumps(figures, indent=1) + "\n")
