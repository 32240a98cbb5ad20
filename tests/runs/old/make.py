"""Writes NAME.ckpt and NAME.npy beside this file: a checkpoint of this version of e2net, and what its model predicts.

    python tests/runs/old/make.py NAME [override ...]

Older ones were made in the same way: README.md has their commits and overrides.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
TINY = [
    "encoder.config.hidden_size=8", "encoder.config.intermediate_size=8", "encoder.config.num_attention_heads=1",
    "encoder.config.num_register_tokens=1", "decoder=linear", "tuning=frozen", "size=32", "data.n_train=8",
    "data.n_test=1", "data.sides=[32,40]", "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.3",
    "trainer.accelerator=cpu", "trainer.max_epochs=1", "num_samples=0",
]  # fmt: skip


def picture() -> np.ndarray:
    """(32, 32, 3) uint8."""
    y, x, c = np.mgrid[0:32, 0:32, 0:3]
    return ((y * 5 + x * 3 + c * 40 + (y * x) % 7 * 9) % 256).astype(np.uint8)


def main(name: str, *overrides: str) -> None:
    """Trains for two steps, and keeps the best checkpoint."""
    from e2net.runs.checkpoint import load_model  # noqa: PLC0415 - a test imports this file for its picture

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *TINY, *overrides, f"hydra.run.dir={folder}"]
        subprocess.run(command, cwd=HERE.parent.parent.parent, check=True)
        shutil.copyfile(Path(folder) / "checkpoints" / "best.ckpt", HERE / f"{name}.ckpt")
    model, _ = load_model(HERE / f"{name}.ckpt")
    image = torch.from_numpy(picture().transpose(2, 0, 1))[None].float() / 255
    with torch.no_grad():
        np.save(HERE / f"{name}.npy", model(image).prediction[0, 0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
