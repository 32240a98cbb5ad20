"""The verbs of ``python -m e2net.features``: what each takes, and what it runs. Imports nothing heavy.

A verb is a module of its name here with ``USAGE``, a dataclass ``Settings``, and ``run(settings)``, which returns the
exit status and imports what takes time.
"""

# With what --help says of it.
VERBS: dict[str, str] = {
    "segment": "masks of pictures from a few pictures with masks",
    "foreground": "masks of the foreground without any mask to learn from",
    "search": "the pictures of a folder that are most like one; near-duplicates",
    "classify": "k-NN and linear classification of whole pictures",
}
