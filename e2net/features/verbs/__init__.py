"""The verbs of ``python -m e2net.features``: what each takes, and what it runs. Imports nothing heavy.

A verb is a module of its name here with ``USAGE``, a dataclass ``Settings``, and ``run(settings)``, which returns the
exit status and imports what takes time.

- ``common``: what verbs that look at pictures share
- ``pca``: principal components as colours
- ``similarity``: of every patch to one
- ``norms``: of patches
- ``attention``: of class and register tokens
- ``foreground``: masks from each picture alone
- ``segment``: masks from a few pictures with masks
- ``search``: the pictures most like one
- ``classify``: classes of whole pictures
- ``match``: patches of two pictures
- ``track``: masks that follow a film
- ``probe``: encoders in one table
"""

# With what --help says of it.
VERBS: dict[str, str] = {
    "pca": "principal components of patches as colours, foreground first, one basis for all pictures",
    "attention": "where class and register tokens look, head by head",
    "similarity": "how alike all patches are to a point or a box of the first picture",
    "norms": "lengths of the patches' vectors: artefacts stand out",
    "segment": "masks of pictures from a few pictures with masks",
    "foreground": "masks of the foreground without any mask to learn from",
    "search": "the pictures of a folder that are most like one; near-duplicates",
    "classify": "k-NN and linear classification of whole pictures",
    "match": "which patches of two pictures belong together",
    "probe": "one table of what encoders know: masks, classes, depth, films",
    "track": "masks that follow a film",
}
