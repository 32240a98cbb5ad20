"""Scores a checkpoint on named test sets and writes its maps. See ``python eval.py --help``."""

import hydra
from omegaconf import DictConfig

from e2net.engine import evaluate, inherit, prepare_evaluation, resolve, user_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(config: DictConfig) -> None:
    """Composes the config, rebuilds the model and checks the data, then tests."""
    with user_errors():
        job = prepare_evaluation(resolve(inherit(config)))
    evaluate(job)
    print(f"maps and scores: {job.output}")


if __name__ == "__main__":
    main()
