"""Scores a checkpoint, or any method's maps, on named test sets. See ``python -m e2net.eval --help``."""

import contextlib
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from e2net.arguments import print_anywhere
from e2net.installation import conf_folder
from e2net.runs.folder import owned
from e2net.runs.launch import failures_told, full_disk_told, one_of_many


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="eval")
def main(config: DictConfig) -> None:
    """Composes the config, builds the model or finds the maps, checks the data, then scores."""
    # Only now, as these take seconds to import, which --help and a misspelt key need not wait for.
    from e2net.evaluation import evaluate, prepare_evaluation  # noqa: PLC0415
    from e2net.evaluation.predictions import UnusableMapsError, check_task  # noqa: PLC0415
    from e2net.runs import inherit, resolve, user_errors  # noqa: PLC0415
    from e2net.structures import NotFiniteError  # noqa: PLC0415

    with one_of_many(), full_disk_told("make room, then evaluate again"):
        try:
            with contextlib.ExitStack() as held:
                with user_errors():
                    check_task(config)
                    held.enter_context(owned(Path(config.output)))
                    job = prepare_evaluation(resolve(inherit(config, HydraConfig.get().overrides.task)))
                evaluate(job)
        except (UnusableMapsError, NotFiniteError):  # the user's files, not our code: a line says more than a traceback
            with user_errors():
                raise
        except KeyboardInterrupt:
            clean = config.corruptions and (Path(config.output) / "scores.json").is_file()
            left = "scores.json is of the clean pictures, corruptions.json was not" if clean else "no score was"
            print(f"interrupted; {left} written", file=sys.stderr)
            raise SystemExit(130) from None
    print(f"scores: {job.output}")


def run() -> None:
    """The program."""
    print_anywhere()
    with failures_told():
        main()


if __name__ == "__main__":
    run()
