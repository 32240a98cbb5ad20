"""Continues to train an encoder on pictures without labels. See ``python -m e2net.adapt --help``."""

import contextlib
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from e2net.arguments import print_anywhere, refuse_overrides
from e2net.installation import conf_folder
from e2net.runs.config import list_groups, user_errors
from e2net.runs.folder import owned
from e2net.runs.launch import ends_told, failures_told

# Of a data set with targets, what reads nothing here.
_UNUSED = ("data.augment", "data.size", "decoder")
# Groups that conf/adapt.yaml has not, or that are none of the user's.
_OTHERS = ("adapt_with", "decoder", "experiment", "loss", "neck", "protocol", "strategy", "task")


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="adapt")
def main(config: DictConfig) -> None:
    """Composes the config, builds and checks everything, then trains and writes the encoder's folder."""
    # Only now, as these take seconds to import, which --help and a misspelt key need not wait for.
    from e2net.adapt.run import adapt, prepare_adapting  # noqa: PLC0415
    from e2net.adapt.watch import CollapseError  # noqa: PLC0415
    from e2net.runs import resolve  # noqa: PLC0415
    from e2net.structures import NotFiniteError  # noqa: PLC0415
    from e2net.training import OutOfMemoryError  # noqa: PLC0415

    ends = ends_told(config.run_dir, OutOfMemoryError, NotFiniteError, CollapseError)
    with ends, contextlib.ExitStack() as held:
        with user_errors():
            refuse_overrides(HydraConfig.get().overrides.task, _UNUSED, "python -m e2net.adapt does not use it")
            settings = resolve(config)
            del settings["decoder"]
            held.enter_context(owned(Path(settings["run_dir"])))
            job = prepare_adapting(settings)
        adapt(job)


if __name__ == "__main__":
    OmegaConf.register_new_resolver("list_groups", lambda: list_groups(conf_folder(), _OTHERS))
    print_anywhere()
    with failures_told():
        main()
