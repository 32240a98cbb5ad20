"""Tiny encoders with random weights, one per architecture, and where the real data lies."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before the imports that read them. A test that needs the network is a broken test.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tables are as wide as the terminal, which is no matter of the tests.
os.environ |= {"COLUMNS": "80", "LINES": "24"}
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers share the cores, and what they start does

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

ROOT = Path(__file__).parent.parent


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core that this process may use; none for a single file or core, where they would only cost time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    single = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if single or cores == 1 else min(cores, 8)


SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64}
ARCHITECTURES = {
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


def hf_model(name: str) -> PreTrainedModel:
    """A model with weights large enough that blocks, norms and positions all matter, in eval mode."""
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
