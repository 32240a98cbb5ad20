"""Evaluation: inference, tests of checkpoints, maps on disk, and their reports.

- ``entry``: an evaluation, of a checkpoint or of maps on disk
- ``test``: of a checkpoint
- ``module``: the LightningModule that tests
- ``data``: what Lightning asks of a data module
- ``inference``: mirror images, several scales and windows around one model
- ``scales``: which sizes are legal, and batches resized
- ``zoom``: a second, enlarged look
- ``callbacks``: bars, pictures, maps and digests
- ``predictions``: maps on disk, found and scored
- ``folder``: one folder of them, by one call
- ``report``: tables and every file beside them
- ``plots``: the figures of a report
- ``breakdown``: where a method fails
- ``breakdown_page``: the same as one HTML file; its HTML is in ``template/``
- ``corruptions``: what a checkpoint loses on corrupted pictures
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
