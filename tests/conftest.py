"""Tiny encoders with random weights, one per architecture, and where the real data lies."""

import gc
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before the imports that read them. A test that needs the network is a broken test.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tables are as wide as the terminal, which is no matter of the tests.
os.environ |= {"COLUMNS": "80", "LINES": "24"}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores, and what they start does

# No test takes the power away, and to wait for the disk takes seconds.
os.fsync = lambda fd: None

import composing

composing.install()

import pytest

# torch and all that imports it later: the process that only hands the tests out can do without.
if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOT = Path(__file__).parent.parent

# Those that take a quarter of a minute and more, the longest first: none should begin where the others are done.
LONG = (
    "test_training_processes.py", "test_start.py", "test_training_states.py", "test_training_speed.py",
    "test_training_kills.py", "test_compare_sweep.py", "test_gpu_smoke.py", "test_runs_overrides.py",
    "test_runs_settings.py", "test_training_run.py", "test_gpu_gradients.py", "test_gpu_branches.py",
    "test_runs_launch.py", "test_runs_cluster.py", "test_training_finite.py", "test_encoders_listing.py",
    "test_training_reproducibility.py", "test_training_full_disk.py", "test_fixed_values.py", "test_docs_commands.py",
)  # fmt: skip


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core that this process may use; none for a single file or core, where they would only cost time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    single = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if single or cores == 1 else min(cores, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; with ``--no-loadscope-reorder`` in pyproject.toml, as xdist goes by the number of tests."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What has been imported stays: to look through it for garbage again and again takes seconds."""
    gc.collect()
    gc.freeze()


def mostly_slow(cases: Iterable[Any], quick: Container[int] = (0,)) -> list[Any]:
    """Cases for ``parametrize``; only those at the ``quick`` places run by default: see ``slow`` in pyproject.toml."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if i in quick else pytest.mark.slow) for i, case in enumerate(cases)]


SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "dinov3": {"model_type": "dinov3_vit", "patch_size": 16, "intermediate_size": 64, "num_register_tokens": 4},
    "dinov2": {"model_type": "dinov2", "patch_size": 14, "mlp_ratio": 2},
    "dinov2_registers": {
        "model_type": "dinov2_with_registers",
        "patch_size": 14,
        "mlp_ratio": 2,
        "num_register_tokens": 4,
    },
}


def encoder_config(name: str) -> dict:
    return {**SMALL, **ARCHITECTURES[name]}


def hf_model(name: str) -> "PreTrainedModel":
    """A model with weights large enough that blocks, norms and positions all matter, in eval mode."""
    import torch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415

    torch.manual_seed(0)
    keys = encoder_config(name)
    model = AutoModel.from_config(AutoConfig.for_model(keys.pop("model_type"), initializer_range=0.2, **keys))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a folder like that of a downloaded encoder."""

    def write(name: str) -> Path:
        folder = tmp_path / "checkpoint" / name
        hf_model(name).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(
            '{"image_processor_type": "BitImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}'
        )
        return folder

    return write


@pytest.fixture
def shared() -> Path:
    """The folder with real photographs and a pretrained encoder; the test is skipped where it is absent."""
    folder = Path(os.environ.get("E2NET_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "sod300").is_dir():
        pytest.skip(f"real photographs are not here: {folder}/data/sod300 (set E2NET_SHARED)")
    return folder


@pytest.fixture(scope="module", autouse=True)
def modules_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a file of tests imported from a temporary folder is forgotten, so that the next may give the name anew."""
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        places = (vars(module).get("__file__"), *vars(module).get("__path__", ()))
        if any(str(place).startswith(folder) for place in places):
            del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def curves_drawn_once() -> Iterator[None]:
    """For each number of test sets, as to draw them takes as long as a tiny training or evaluation does.

    In test_evaluation_report.py they are drawn each time.
    """
    from e2net.evaluation.plots import calibration_figure, curve_figure  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        for figure in (curve_figure, calibration_figure):
            patch.setattr(f"e2net.evaluation.report.{figure.__name__}", _drawn_once(figure))
        yield


def _drawn_once(figure: Callable[[Mapping[str, Any]], bytes]) -> Callable[[Mapping[str, Any]], bytes]:
    drawn: dict[int, bytes] = {}

    def draw(sets: Mapping[str, Any]) -> bytes:
        if len(sets) not in drawn:
            drawn[len(sets)] = figure(sets)
        return drawn[len(sets)]

    return draw


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    """Lightning leaves the ranks of processes in the environment, where programs of later tests would find them."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in ranks}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
