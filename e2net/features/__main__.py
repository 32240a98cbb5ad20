"""What an encoder sees. See ``python -m e2net.features --help``."""

import difflib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence

from e2net.arguments import help_text, print_anywhere, read_settings
from e2net.features.verbs import VERBS

_USAGE = """\
Pictures of what an encoder sees, and what its features do without training.

  python -m e2net.features VERB key=value ...
  python -m e2net.features VERB --help

Verbs:"""


def main(arguments: Sequence[str]) -> int:
    """Runs one verb.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 done, 1 done in part, 2 a wrong setting or input, 130 interrupted.
    """
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        width = max(map(len, VERBS), default=0)
        print("\n".join([_USAGE, *(f"  {name:<{width}}  {about}" for name, about in VERBS.items())]))
        return 0 if arguments else 2
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(VERBS)}"
        print(f"error: unknown verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"e2net.features.verbs.{verb}")
    if len(arguments) == 1 or {"-h", "--help"} & set(arguments):
        print(help_text(module.Settings, module.USAGE))
        return 0 if len(arguments) > 1 else 2
    try:
        settings = read_settings(module.Settings, arguments[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # What these libraries say about a broken file stands beside our own line about it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    warnings.filterwarnings("ignore", module="PIL")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # so that what is half written is removed
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    from e2net.runs import user_errors  # noqa: PLC0415 - takes seconds

    try:
        with user_errors():
            return int(module.run(settings))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
