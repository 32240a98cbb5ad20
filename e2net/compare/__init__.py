"""Comparison of backbones and other variants: ``python -m e2net.compare`` and, in Python, ``compare``.

- ``settings``: of the program
- ``sweep``: one run for each variant and seed
- ``runs``: finished runs on disk, grouped and checked for being comparable
- ``comparison``: from runs to a report
- ``statistics``: differences between two variants
- ``corruptions``: what variants lose on corrupted pictures
- ``cost``: parameters, operations, time and memory
- ``gallery``: the images on which two variants disagree most
- ``result``: what was found, as the writers of reports get it
- ``tables``: the tables of a report
- ``markdown``: the report as Markdown
- ``page``: the report as one HTML file; its HTML is in ``template/``
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
