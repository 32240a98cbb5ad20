"""What an encoder sees: pictures of its features, and what these do without training.

- ``verbs``: what each verb of the program takes, and what it runs
- ``inputs``: which pictures a setting means
- ``extract``: from pictures to features
- ``drawing``: what the verbs that draw have in common
- ``looks``: components, similarity, norms, and maps sharpened by the picture
- ``attending``: where class and register tokens look
- ``sheet``: maps of patches as pictures
- ``gallery``: the same to click on, as one HTML file; its HTML is in ``template/``
- ``masks``: maps as verbs write and score them
- ``few``: masks from a few pictures with masks
- ``cut``: the foreground from features alone
- ``whole``: classes of whole pictures
- ``logistic``: logistic regression on features
- ``store``: vectors of files, kept between runs
- ``index``: vectors, and which are nearest to one
- ``codes``: vectors in 8 bits
- ``matching``: two pictures, patch by patch
- ``correspondence``: which patches belong together
- ``propagation``: labels that spread through a film
- ``tracking``: masks that follow a film
- ``dense``: masks, label maps and depth by a linear map
- ``suite``: encoders against each other in one table
- ``published``: published scores of encoders
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
