"""Training: the step, the run, and what belongs to them.

- ``run``: from a config to a tested model
- ``step``: one step, the same wherever it is run
- ``module``: the LightningModule
- ``terminal``: what is said before and after it
- ``callbacks``: checkpoints, lines and bars, and what a resumed run needs
- ``optim``: which parameter gets which rate
- ``schedules``: how rates change
- ``averaging``: a moving average of the weights
- ``finite``: steps that are not finite
- ``memory``: how many images fit
- ``cache``: a frozen encoder's features, computed once
- ``strategies``: how a training is spread over devices
- ``shared_layers``: norms and dropout over all processes
- ``records``: ``metrics.csv``, and checkpoints that are whole at every moment
- ``loggers``: where curves go beside it
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
