"""Trains one model and tests its best checkpoint. See ``python -m e2net.train --help``."""

import contextlib
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from e2net.arguments import print_anywhere
from e2net.installation import conf_folder
from e2net.runs.config import list_groups
from e2net.runs.folder import owned
from e2net.runs.launch import ends_told, failures_told


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="train")
def main(config: DictConfig) -> None:
    """Composes the config, builds and checks everything, then trains and tests."""
    # Only now, as these take seconds to import, which --help and a misspelt key need not wait for.
    from e2net.runs import resolve, user_errors  # noqa: PLC0415
    from e2net.structures import NotFiniteError  # noqa: PLC0415
    from e2net.training import OutOfMemoryError, prepare_training, train  # noqa: PLC0415

    with ends_told(config.run_dir, OutOfMemoryError, NotFiniteError), contextlib.ExitStack() as held:
        with user_errors():
            settings = resolve(config)
            held.enter_context(owned(Path(settings["run_dir"])))
            job = prepare_training(settings)
        train(job)


def run() -> None:
    """The program."""
    # For --help, which is printed before main() runs.
    OmegaConf.register_new_resolver("list_groups", lambda: list_groups(conf_folder()))
    print_anywhere()
    with failures_told():
        main()


if __name__ == "__main__":
    run()
