"""``e2net NAME ...``: every program by its name, the same as ``python -m e2net.NAME ...``. See ``e2net --help``."""

import runpy
import sys
from collections.abc import Sequence

from e2net import __version__

# The one table of them: each is a module of e2net's that runs as a program.
PROGRAMS = {
    "train": "trains one model and tests its best checkpoint",
    "eval": "scores a checkpoint, or any method's maps, on named test sets",
    "predict": "maps for pictures and films",
    "serve": "answers pictures with their maps over HTTP",
    "demo": "a page in the browser to try models on pictures and films",
    "compare": "backbones, settings or finished runs side by side, as one page",
    "check": "what is wrong with a data set, as one page",
    "adapt": "trains an encoder further, without labels",
    "features": "what an encoder sees, and what its features do without training",
    "encoders": "lists the encoders, what they cost and what fits",
    "export": "files of a model that run without e2net, shown to score the same",
    "profile": "where a training step's time goes",
}
_USAGE = """\
Dense prediction on DINO features.

  e2net PROGRAM key=value ...       the same as python -m e2net.PROGRAM key=value ...
  e2net PROGRAM --help
  e2net --version

Programs:"""


def main() -> int:
    """Runs the program that the command line names, as ``python -m`` would.

    Returns:
        The exit status 0, or 2 for an unknown name; a program ends with its own.
    """
    name, *arguments = sys.argv[1:] or [""]
    if name in ("", "-h", "--help", "help"):
        width = max(map(len, PROGRAMS))
        print("\n".join([_USAGE, *(f"  {one:<{width}}  {about}" for one, about in PROGRAMS.items())]))
        return 0 if name else 2
    if name == "--version":
        print(f"e2net {__version__}")
        return 0
    if name not in PROGRAMS:
        print(f"error: unknown program {name!r}; {_nearest(name)}", file=sys.stderr)
        return 2
    sys.argv[1:] = arguments
    # As __main__, with its own name: what starts this program again, such as training on several GPUs, goes by it.
    runpy.run_module(f"e2net.{name}", run_name="__main__", alter_sys=True)
    return 0


def _nearest(name: str) -> str:
    import difflib  # noqa: PLC0415 - seldom needed

    near: Sequence[str] = difflib.get_close_matches(name, PROGRAMS, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(PROGRAMS)}"


if __name__ == "__main__":
    raise SystemExit(main())
