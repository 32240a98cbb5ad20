"""Sweeps: one resolved config for each variant and seed, each in a run folder of its own, through Hydra's multirun.

Variants need not be a grid (each has its own size where tokens are given), while multirun only knows grids. So every
job's resolved config is written as an option of a generated group ``job``, and multirun sweeps over that one group;
any launcher carries it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from e2net.arguments import nearest_key
from e2net.compare.runs import SCORES, check_names, config_key, unique
from e2net.compare.settings import CompareSettings
from e2net.installation import ROOT, conf_folder, is_checkout
from e2net.lock import alone
from e2net.runs import build, build_model, inherit, resolve
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.config import (
    build_data,
    build_task,
    check_part,
    check_training,
    hydra_message,
    resolve_task,
)
from e2net.runs.folder import BEST, CHECKPOINTS, LAST, LOCK
from e2net.runs.outputs import is_claimed
from e2net.runs.provenance import file_hash
from e2net.training.memory import AUTO

# Set by the user: hydra/launcher=..., hydra.launcher.n_jobs=..., and alike.
_TO_HYDRA = ("hydra/", "hydra.", "+hydra.", "~hydra")
# But for where config files of one's own lie, which is of the composing.
_SEARCHPATH = "hydra.searchpath="
_INTERRUPTED = (130, -2)
# How long an interrupted multirun may take to end by itself: a checkpoint may be half written.
_GRACE = 30


@dataclass
class PlannedRun:
    """One run of a sweep.

    Attributes:
        variant: position of its variant.
        config: resolved, without places.
        folder: its run folder.
        fault: why it has no scores, if it has failed.
    """

    variant: int
    config: dict[str, Any]
    folder: Path
    fault: str | None = None

    @property
    def finished(self) -> bool:
        """Whether its scores, which are written last, are there."""
        return (self.folder / SCORES).is_file()

    @property
    def log(self) -> Path:
        """What to read if it failed."""
        return self.folder / "train.log"


@dataclass
class Plan:
    """What a sweep is to run: the variants' names, all jobs, and what is to be said about their fairness."""

    names: list[str]
    jobs: list[PlannedRun]
    hydra: list[str]
    warnings: list[str] = field(default_factory=list)


def evaluation_config(checkpoint: Path, output: Path, device: str) -> dict[str, Any]:
    """A resolved ``conf/eval.yaml`` for a checkpoint on the test sets, and by the protocol, of its training."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("eval", given := ["output=null", f"accelerator={device}", "num_samples=0"])
    config.ckpt, config.output = str(checkpoint), str(output)
    return resolve(inherit(config, given))


def make_plan(settings: CompareSettings) -> Plan:
    """Composes every variant's config for every seed, and builds each variant's model once, as a check.

    Raises:
        ValueError, FileNotFoundError: an override is wrong, a model cannot be built, or data are missing.
    """
    places = [o for o in settings.overrides if o.startswith(_SEARCHPATH)]
    passed = [o for o in settings.overrides if o.startswith(_TO_HYDRA) and o not in places]
    parsed = _parse([o for o in settings.overrides if o not in (*passed, *places)])
    seeds = [o for o in parsed if o.key_or_group == "seed"]
    if len(seeds) > 1:
        raise ValueError("seed is given twice; expected all seeds in one list, such as seed=0,1,2")
    swept = [o for o in parsed if o.is_sweep_override() and o not in seeds]
    plain = places + [str(o.input_line) for o in parsed if o not in swept and o not in seeds]
    choices = [_expand(o) for o in swept]
    if not swept:
        raise ValueError(
            "nothing to compare: expected an override besides seed with several values, such as "
            "encoder=dinov2_b,dinov3_b; to compare seeds, train them (e2net train -m seed=0,1) and give runs=[...]"
        )
    variants = list(itertools.product(*choices))
    plan = Plan(_variant_names(variants, settings.names), [], passed)
    _check_places(plain, swept)
    spelled = [[part for override in variant for part in _spelled_out(override)] for variant in variants]
    sized = [_with_tokens([*plain, *variant], settings.tokens) for variant in spelled]
    _be_fair(plan, sized, settings.tokens, any(o.key_or_group == "size" for o in parsed))
    tested: list[Any] = []
    for position, (overrides, _) in enumerate(sized):
        for seed in _expand(seeds[0]) if seeds else [None]:
            config = _compose([*overrides, *([seed] if seed else [])])
            try:
                check_training({**config, "resume": None, "run_dir": "unused"})
            except ValueError as error:
                raise ValueError(f"{plan.names[position]}: {error}") from error
            if position == len(tested) == 0:
                _check_score(config, settings.score)  # now, not when all has been trained
            if len(tested) == position:
                tested.append(_check(plan.names[position], config))
            key = _key(config)
            folder = _folder(Path(settings.store).expanduser(), f"{plan.names[position]}_seed{config['seed']}", key)
            plan.jobs.append(PlannedRun(position, config, folder))
        if tested[position][0] != tested[0][0]:
            raise ValueError(
                f"{plan.names[0]} is of task={tested[0][0]} and {plan.names[position]} of task={tested[position][0]}; "
                "expected one task for all, as their scores could not be compared"
            )
        if tested[position] != tested[0]:
            raise ValueError(
                f"{plan.names[0]} and {plan.names[position]} have different test images or protocols; expected the "
                "same for all, as their scores could not be compared"
            )
    keys = [config_key(job.config) for job in plan.jobs]
    twice = [job for i, job in enumerate(plan.jobs) if keys[i] in keys[:i]]
    if twice:
        raise ValueError(
            f"{plan.names[twice[0].variant]} (seed {twice[0].config['seed']}) comes twice with the same config; "
            "expected values that differ"
        )
    return plan


def _parse(overrides: Sequence[str]) -> list[Override]:
    parsed: list[Override] = []
    for override in overrides:
        try:
            parsed += OverridesParser.create().parse_overrides([override])
        except HydraException as error:
            raise ValueError(f"{override}: no override in Hydra's syntax ({hydra_message(error)})") from error
    return parsed


def _expand(override: Override) -> list[str]:
    """Every value of a swept override, as an override; of another one just itself."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ValueError(f"{override.input_line}: expected a list of values, found an interval or a pattern")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _variant_names(variants: Sequence[Sequence[str]], given: Sequence[Any] | None) -> list[str]:
    """What stands behind the equals signs, of a path its end; with the key unless all its values are words."""
    columns = []
    for overrides in zip(*variants, strict=True):
        key = overrides[0].partition("=")[0].rpartition(".")[2]
        values = [_plain(override.partition("=")[2]) for override in overrides]
        if all(re.fullmatch(r"[A-Za-z/][\w ./-]*", v) and v.lower() not in ("true", "false", "null") for v in values):
            columns.append(_ends(values))
        else:
            columns.append([f"{key}={value}" for value in values])
    return check_names(given, len(variants)) or unique([", ".join(parts) for parts in zip(*columns, strict=True)])


def _check_places(plain: Sequence[str], swept: Sequence[Override]) -> None:
    """Refuses one ``encoder.path`` for several encoders, which would all be that one."""
    several = [str(o.input_line) for o in swept if o.key_or_group == "encoder"]
    place = next((o for o in plain if o.startswith("encoder.path=")), None)
    if several and place:
        folder = place.partition("=")[2]
        raise ValueError(
            f"{place} would be the files of each encoder in {several[0]}; give folders in the list itself, such as "
            f"encoder=dinov3_b,{folder}"
        )


def _spelled_out(override: str) -> list[str]:
    """``encoder=FOLDER`` as train.py takes it: the option that loads such a folder, and where it lies."""
    key, _, value = override.partition("=")
    name = _plain(value)
    if key != "encoder" or not ("/" in name or Path(name).is_dir()):
        return [override]
    file = _place(name) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"model_type": name}
        timm, convnext = "architecture" in config or name.startswith("timm/"), "convnext" in json.dumps(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: expected an encoder's config, found what is none ({error})") from error
    # All sizes of a kind are loaded by one option, once its config is not asked for.
    options = {
        (True, True): ["encoder=timm_convnext"],
        (True, False): ["encoder=timm"],
        (False, True): ["encoder=convnext_t", "~encoder.config"],
        (False, False): ["encoder=local"],
    }
    return [*options[timm, convnext], f"encoder.path={value}"]


def _place(path: str) -> Path:
    """Where the files of an encoder lie, if they are on this machine."""
    places = (Path(path).expanduser(), Path("checkpoint", Path(path).name))
    return next((place for place in places if place.is_dir()), places[0])


def _plain(value: str) -> str:
    """Without Hydra's quotes and escapes, as for the spaces in a path."""
    return re.sub(r"\\(.)", r"\1", value.strip("'\""))


def _ends(paths: Sequence[str]) -> list[str]:
    """As many last parts of all paths as tell them apart: ``encoder``, or ``a/encoder`` beside ``b/encoder``."""
    parts = [path.rstrip("/").split("/") for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(one[-count:]) for one in parts]
        if len(set(ends)) == len(set(paths)):
            return ends
    return list(paths)


def _key(config: dict[str, Any]) -> str:
    """Of a run's folder: another one once ``python -m e2net.adapt`` has written the encoder's folder anew."""
    key, path = config_key(config), config["encoder"].get("path")
    weights = "model.safetensors"
    if path is None or not is_claimed(place := _place(path), [weights]) or not (place / weights).is_file():
        return key
    return hashlib.sha256(f"{key} {file_hash(place / weights)}".encode()).hexdigest()[: len(key)]


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = resolve(compose("train", [*overrides, "run_dir=null"]))
    except HydraException as error:
        line = hydra_message(error)
        keys = [o.partition("=")[0] for o in overrides]
        near = next(filter(None, (nearest_key(CompareSettings, key, 0.75) for key in keys if key in line)), None)
        raise ValueError(f"{line}{f' Did you mean {near}=...?' if near else ''}") from error
    del config["run_dir"], config["resume"]
    return config


def _with_tokens(overrides: list[str], tokens: Any) -> tuple[list[str], tuple[int, tuple[int, int]]]:
    """The overrides of one variant with the size that gives the number of tokens; its patch size; its input size."""
    config = _compose(overrides)
    check_part(config, "encoder")
    patch = build(config["encoder"]).size_multiple
    if tokens is not None:
        rows, columns = (tokens, tokens) if isinstance(tokens, int) else (tokens[0], tokens[-1])
        sides = (rows * patch, columns * patch)
        value = str(sides[0]) if sides[0] == sides[1] else f"[{sides[0]},{sides[1]}]"
        return [*(o for o in overrides if not o.startswith("size=")), f"size={value}"], (patch, sides)
    size = config["size"]
    return overrides, (patch, (size, size) if isinstance(size, int) else tuple(size))


def _be_fair(plan: Plan, sized: list[Any], tokens: Any, size_given: bool) -> None:
    """Chooses equally many tokens where nothing was said about them, and warns where given sizes differ in them."""
    if tokens is not None and size_given:
        raise ValueError("tokens=... and size=... contradict each other; give one of them")
    patches = [patch for _, (patch, _) in sized]
    if tokens is None and not size_given and len(set(patches)) > 1:
        common = max(1, min(side // max(patches) for _, (_, sides) in sized for side in sides))
        plan.warnings.append(
            f"No size was given and patch sizes differ, so each gets {common} x {common} tokens; choose by tokens=..."
        )
        sized[:] = [_with_tokens(overrides, common) for overrides, _ in sized]
    counts = [(sides[0] / patch) * (sides[1] / patch) for _, (patch, sides) in sized]
    if len(set(counts)) > 1:
        each = "; ".join(f"{name}: {count:g}" for name, count in zip(plan.names, counts, strict=True))
        plan.warnings.append(f"Not the same number of patch tokens ({each}); tokens=... makes them equal.")


def _check_score(config: dict[str, Any], score: str | None) -> None:
    task = build_task(resolve_task(config))
    if score not in (None, *task.scores):
        raise ValueError(f"score={score}: expected one of {', '.join(task.scores)}")


def _check(name: str, config: dict[str, Any]) -> tuple[str, Any, dict[str, list[str]]]:
    """Builds everything but the trainer, so that a wrong setting shows before any run starts.

    Returns:
        What has to be the same for all: the task, its protocol, and the names of each test set's images.
    """
    settings = config["data"]
    if settings.get("batch_size") == AUTO:  # each run tries it out, on the machine that trains it
        settings = {**settings, "batch_size": 1}
    try:
        config = resolve_task(config)
        task = build_task(config)
        build_model(config).encoder.check_size(*(data := build_data(settings, task)).size)
        for key in ("loss", "optim"):
            build(config[key])
        data.setup(None)
        sources = {test_set: data.test_source(test_set) for test_set in data.test_names}
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not sources:
        raise ValueError(f"{name}: data.test names no test set; expected one at least, to compare scores on")
    return (
        task.name,
        config["protocol"],
        {k: [source.name(i) for i in range(len(source))] for k, source in sources.items()},
    )


def _folder(store: Path, name: str, key: str) -> Path:
    """The run folder of a config: whatever it was called, if there is one, else a readable name with the key.

    Of several a finished one first, then one that can be continued; none of them is ever removed.
    """
    found = sorted(p for p in store.glob(f"*-{key}") if p.is_dir())
    for needed in (Path(SCORES), Path("checkpoints", LAST)):
        for folder in found:
            if (folder / needed).is_file():
                return folder
    return _new_folder(store, name, key)


def _new_folder(store: Path, name: str, key: str) -> Path:
    """A folder that is not there yet, or is empty."""
    readable = re.sub(r"[^A-Za-z0-9_.]+", "_", name).strip("_")
    names = itertools.chain([readable], (f"{readable}_{count}" for count in itertools.count(2)))
    folders = (store / f"{one}-{key}" for one in names)
    return next(f for f in folders if not f.exists() or (f.is_dir() and not any(f.iterdir())))


def run_sweep(plan: Plan, work: Path, say: Callable[[str], None] = print) -> None:
    """Runs all jobs that are not finished; those that fail get their ``fault``.

    Where a job takes the whole process with it (killed for memory, say), those that have not started yet are launched
    again without it.

    Args:
        plan: what to run.
        work: folder in which the generated configs are kept while it runs.
        say: prints a line.

    Raises:
        KeyboardInterrupt: the sweep was interrupted, by Ctrl-C or SIGTERM; the same plan continues it.
        ValueError: another sweep is training in the same store.
    """
    done = sum(job.finished for job in plan.jobs)
    if done:
        say(f"{done} of {len(plan.jobs)} runs are finished already and are used as they are")
    if done < len(plan.jobs):
        store = plan.jobs[0].folder.parent
        taken = f"store={store}: another sweep is training there; wait until it has ended, or give another store=..."
        with alone(store / ".lock", "sweep", taken) as locked, _workplace(work) as place:
            for job in plan.jobs:
                _choose_start(job, say)
            _train(plan, place, locked)


@contextlib.contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A new folder in ``output``, which is removed in the end: nobody else's files are in it."""
    output.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".sweep_", dir=output))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _train(plan: Plan, place: Path, locked: BinaryIO | None) -> None:
    open_jobs = [job for job in plan.jobs if not job.finished and job.fault is None]
    while open_jobs:
        before = {job.folder: _started(job) for job in open_jobs}
        code = _launch(open_jobs, Path(tempfile.mkdtemp(dir=place)), plan.hydra, locked)
        if code in _INTERRUPTED:
            raise KeyboardInterrupt
        tried = [job for job in open_jobs if _started(job) != before[job.folder]]
        for job in tried or open_jobs:
            if not job.finished:
                job.fault = _fault(job, code)
        open_jobs = [job for job in open_jobs if not job.finished and job.fault is None]


def _started(job: PlannedRun) -> int | None:
    """Changes with every start of the job."""
    file = job.folder / LOCK
    return file.stat().st_mtime_ns if file.is_file() else None


def _fault(job: PlannedRun, code: int) -> str:
    if not job.log.is_file():
        return f"did not start (train.py -m ended with status {code}); what it printed stands above"
    lines = [line.strip() for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)]
    last = raised[-1] if raised else f"stopped without a message (train.py -m ended with status {code})"
    return f"{last[:300]} (log: {job.log})"


def _launch(jobs: Sequence[PlannedRun], work: Path, hydra: Sequence[str], locked: BinaryIO | None) -> int:
    """One multirun of train.py over the jobs; it holds the lock as well, should it outlive this process."""
    (work / "job").mkdir(parents=True)
    store = jobs[0].folder.parent.resolve()
    for job in jobs:
        config = {**job.config, "resume": _resume(job), "run_dir": "${hydra:runtime.output_dir}"}
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        (work / "job" / f"{job.folder.name}.yaml").write_text(f"# @package _global_\n{text}", encoding="utf-8")
    primary = {
        "defaults": [{"job": "???"}, "_self_"],
        "hydra": {
            "sweep": {"dir": str(store), "subdir": "${hydra:runtime.choices.job}"},
            # A wrong setting raises rather than exits, so that the other jobs go on, and each log has its own error.
            "job": {"name": "train", "env_set": {"E2NET_TRACEBACK": "1"}},
            "callbacks": {"log_job_return": {"_target_": "hydra.experimental.callbacks.LogJobReturnCallback"}},
        },
    }
    (work / "sweep.yaml").write_text(yaml.safe_dump(primary, sort_keys=False), encoding="utf-8")
    names = ",".join(f"'{job.folder.name}'" for job in jobs)
    # Not an e2net that lies in the working directory: -P.
    command = [sys.executable, "-P", "-m", "e2net.train"]
    command += ["-m", f"--config-dir={work.resolve()}", "--config-name=sweep"]
    environment = dict(os.environ)
    if is_checkout():  # this one, also where another is installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    # In a process group of its own, so that it can be ended with all that it has started.
    alone: dict[str, Any] = {"process_group": 0, "pass_fds": [locked.fileno()] if locked else []}
    if sys.platform == "win32":
        alone = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with _signals_interrupt():
        process = subprocess.Popen([*command, f"job={names}", *hydra], env=environment, **alone)
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM, and SIGHUP unless nohup ignores it, act like Ctrl-C."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: no SIGHUP
    signals = [s for s in known if signal.getsignal(s) is signal.SIG_DFL]
    for one in signals:
        signal.signal(one, signal.default_int_handler)
    try:
        yield
    finally:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a multirun, then what it has left behind, such as joblib's workers."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _choose_start(job: PlannedRun, say: Callable[[str], None]) -> None:
    """Has a job start in a new folder where its checkpoint is broken, and fail where that cannot be read."""
    checkpoint = job.folder / CHECKPOINTS / LAST
    if job.finished or not checkpoint.is_file():
        return
    try:
        read_checkpoint(checkpoint)
    except ValueError as error:
        name, _, key = job.folder.name.rpartition("-")
        job.folder = _new_folder(job.folder.parent, name, key)
        say(f"note: {' '.join(str(error).split())}; that run is left as it is, and starts again in {job.folder}")
    except OSError as error:
        job.fault = f"its checkpoint cannot be read: {error}"


def _resume(job: PlannedRun) -> str | None:
    """Where an unfinished run continues: its own folder, if it has come to a checkpoint."""
    # Its best one alone, if it was killed between its first two.
    if not any((job.folder / CHECKPOINTS / name).is_file() for name in (LAST, BEST)):
        return None
    return str(job.folder.resolve())
