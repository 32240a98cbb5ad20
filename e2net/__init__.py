"""e2net: dense prediction on DINO features, first of all camouflaged-object segmentation.

- ``train``, ``eval``: the programs that Hydra runs
- ``predict``, ``serve``, ``demo``, ``export``, ``features``: programs for what is trained, or needs no training
- ``adapt``, ``check``, ``compare``, ``profile``: programs before and around a training
- ``structures``: what passes between the parts
- ``encoders``, ``decoders``, ``model``: a network; ``python -m e2net.encoders`` lists what it can begin with
- ``losses``, ``metrics``, ``tasks``: what it learns, how it is scored, what its map means
- ``datasets``: pairs of image and target
- ``training``, ``evaluation``: how both are run
- ``runs``, ``hub``: configs, checkpoints and folders; models for others
- ``page``, ``drawing``: reports and sheets
- ``files``, ``formats``, ``pictures``, ``trees``, ``film``: what is read and written
- ``arguments``: settings of programs
- ``installation``: where files of this installation lie
- ``lock``, ``processes``: several processes
- ``attention``, ``symbolic``, ``speed``, ``flops``: arithmetic: faster, of any size, counted
- ``neighbours``, ``progress``: k-NN, and values that change in steps
"""

import lazy_loader

__version__ = "0.1.0"

# What a package offers is listed in its __init__.pyi and imported when it is asked for: torch and the rest take
# seconds, and neither `import e2net` nor --help shall take any.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
