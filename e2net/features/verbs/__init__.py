"""The verbs of ``python -m e2net.features``: what each takes, and what it runs. Imports nothing heavy.

A verb is a module of its name here with ``USAGE``, a dataclass ``Settings``, and ``run(settings)``, which returns the
exit status and imports what takes time.
"""

# With what --help says of it.
VERBS: dict[str, str] = {
    "pca": "principal components of patches as colours, foreground first, one basis for all pictures",
    "attention": "where class and register tokens look, head by head",
    "similarity": "how alike all patches are to a point or a box of the first picture",
    "norms": "lengths of the patches' vectors: artefacts stand out",
}
