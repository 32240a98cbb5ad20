"""Runs: from a config to objects, checkpoints, run folders and where results came from.

- ``config``: from a config to objects
- ``overrides``: what an evaluation takes over from a training
- ``launch``: what Hydra is told about runs
- ``console``: what programs say in a terminal
- ``folder``: the folder of a run
- ``outputs``: folders of results, where nobody's file is written over
- ``checkpoint``: tensors and the resolved config
- ``pretrained``: a trained model as a folder of three files
- ``resume``: what may differ when a run goes on
- ``provenance``: what a run was made with
- ``about``: what a run folder tells of a checkpoint
- ``cards``: what cards of models and encoders share
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
