"""What is wrong or suspect about a data set, before anything is trained on it.

- ``settings``: of the program
- ``survey``: all of a data set, read once
- ``findings``: what can be found about one pair
- ``hashing``: pictures that are the same, or nearly
- ``report``: what was found, as a table and as JSON
- ``page``: the same as one HTML file; its HTML is in ``template/``
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
