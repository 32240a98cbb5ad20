"""Exports a trained model. See ``python -m e2net.export --help``."""

import logging
import signal
import sys
import warnings
from collections.abc import Sequence

from e2net.arguments import help_text, print_anywhere, read_settings
from e2net.export.settings import USAGE, ExportSettings


def main(arguments: Sequence[str]) -> int:
    """Checks everything, exports, compares.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 written, 1 the file differed, 130 interrupted; a wrong setting exits with 2.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(ExportSettings, USAGE))
        return 0 if arguments else 2
    # Only now, as these take seconds to import.
    from e2net.export.job import DifferentError, export, prepare_export  # noqa: PLC0415
    from e2net.runs import user_errors  # noqa: PLC0415

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # what is half written goes then too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What the exporters say to their own authors.
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_error)  # of the root's own lines alone: e2net's come through its handlers
    warnings.filterwarnings("ignore", module=r"torch\.|onnx|copyreg")
    try:
        with user_errors():
            job = prepare_export(read_settings(ExportSettings, arguments))
            step = job.network.model.encoder.size_multiple
            sides = job.settings.sides()
            sizes = f"any size in steps of {step} pixels" if sides is None else f"{sides[0]}x{sides[1]} pixels alone"
            print(
                f"exporting {job.checkpoint} for {sizes}, then comparing on {', '.join(job.data.test_names)} ...",
                flush=True,
            )
            file = export(job)
    except DifferentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    print(f"written: {file}")
    return 0


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
