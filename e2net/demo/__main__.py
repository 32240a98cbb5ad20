"""A page in the browser to try models on pictures and films. See ``python -m e2net.demo --help``."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from e2net.arguments import check_port, help_text, print_anywhere, read_settings
from e2net.demo.settings import USAGE, DemoSettings


def main(arguments: Sequence[str]) -> int:
    """Loads the models, then shows the page until a signal ends it.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 ended, 2 a wrong setting or input.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(DemoSettings, USAGE))
        return 0 if arguments else 2
    # What these libraries say about a broken file is on the page, in our own words.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = read_settings(DemoSettings, arguments)
        check_port(settings.host, settings.port)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="e2net-demo-") as place:
        return _show(settings, Path(place))
    return 0


def _show(settings: DemoSettings, place: Path) -> int:
    silence_gradio(place, settings.host)
    try:
        import gradio  # noqa: F401, PLC0415 - of an extra
    except ImportError:
        print('error: expected the packages of an extra, found none; pip install "e2net[demo]"', file=sys.stderr)
        return 2
    # Only now, as these take seconds to import.
    from e2net.demo.examples import find_examples  # noqa: PLC0415
    from e2net.demo.look import load_models  # noqa: PLC0415
    from e2net.demo.page import launch_options, make_page  # noqa: PLC0415
    from e2net.runs import user_errors  # noqa: PLC0415

    with user_errors():
        examples = find_examples(settings.examples, place)
        page = make_page(load_models(settings), settings, examples)
    page.launch(**launch_options(settings))
    print(f"open http://{settings.host}:{settings.port} in a browser; Ctrl-C ends it", flush=True)
    try:
        signal.pause()
    finally:
        page.close(verbose=False)
    return 0


def silence_gradio(place: Path, host: str) -> None:
    """Before it is imported: its files into a folder that goes with the program, and nothing to anybody."""
    os.environ |= {
        "GRADIO_TEMP_DIR": str(place),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",  # in every visitor's browser
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    # It asks itself whether it is there, which no proxy can answer.
    for key in ("NO_PROXY", "no_proxy"):
        os.environ[key] = ",".join(filter(None, (os.environ.get(key), "localhost", "127.0.0.1", host)))


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
