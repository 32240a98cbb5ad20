"""Hydra's work done once: to compose a config takes longer than a tiny training does.

Files of configs are read once, and what the same overrides gave is copied; but for places, such as
``run_dir=/tmp/...``, which are put in afterwards.
"""

import contextlib
import functools
import pickle
import re
from pathlib import Path

import hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

_compose = hydra.compose
_PLACE = re.compile(r"(\+{0,2}[a-z]\w*(?:\.\w+)*)=(/[\w./-]+)")


def install():
    """Before anything takes compose() from Hydra."""
    hydra.compose = compose  # type: ignore[assignment]  # ours asks for less
    Plugins.instance()  # has found the sources
    for scheme in ("file", "pkg"):
        source = SourcesRegistry.instance().types[scheme]
        source.load_config = _once(source.load_config)


def compose(config_name=None, overrides=(), return_hydra_config=False):
    """As Hydra's own."""
    if return_hydra_config or any(one.lstrip("+~").startswith("hydra") for one in overrides):
        return _compose(config_name, list(overrides), return_hydra_config)
    found = [_PLACE.fullmatch(one) for one in overrides]
    general = [f"{place[1]}=/place/{i}" if place else overrides[i] for i, place in enumerate(found)]
    sources = GlobalHydra.instance().config_loader().get_search_path().get_path()
    with contextlib.suppress(Exception):
        config = pickle.loads(_composed(tuple(one.path for one in sources), config_name, tuple(general)))
        for place in filter(None, found):
            OmegaConf.update(config, place[1].lstrip("+"), place[2])
        return config
    return _compose(config_name, list(overrides))  # for its error to name the place


@functools.cache
def _composed(_sources, name, overrides):
    return pickle.dumps(_compose(name, list(overrides)))


def _once(load):
    """A source's way to load a config, where its file has not changed since it was loaded."""
    known = {}

    def load_config(self, config_path):
        file = Path(self.path, self._normalize_file_name(config_path))
        state = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
        key = (self.provider, self.path, config_path, state)
        if key not in known:
            known[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(known[key])

    return load_config
