"""Trains one model and tests its best checkpoint. See ``python train.py --help``."""

import contextlib
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from e2net.arguments import print_anywhere
from e2net.engine.config import list_groups
from e2net.engine.folder import new_folder, owned

# For --help and for the name of the run folder, both of which come before main().
OmegaConf.register_new_resolver("list_groups", lambda: list_groups(Path(__file__).parent / "conf"))
OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    """Composes the config, builds and checks everything, then trains and tests."""
    # Only now, as these take seconds to import, which --help and a misspelt key need not wait for.
    from e2net.engine import OutOfMemoryError, prepare_training, resolve, train, user_errors  # noqa: PLC0415

    try:
        with contextlib.ExitStack() as held:
            with user_errors():
                settings = resolve(config)
                held.enter_context(owned(Path(settings["run_dir"])))
                job = prepare_training(settings)
            train(job)
    except KeyboardInterrupt:
        print(f"interrupted; continue with resume={job.output}", file=sys.stderr)
        raise SystemExit(130) from None
    except OutOfMemoryError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the other jobs of the sweep go on; Hydra ends with status 1
            raise RuntimeError("this job of the sweep was not run, see above") from None
        raise


if __name__ == "__main__":
    print_anywhere()
    main()
