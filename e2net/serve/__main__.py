"""Answers pictures with their maps over HTTP. See ``python -m e2net.serve --help``."""

import sys
from collections.abc import Sequence
from typing import Any

from e2net.arguments import check_port, help_text, print_anywhere, read_settings
from e2net.serve.settings import USAGE, ServeSettings


def main(arguments: Sequence[str]) -> int:
    """Loads the model, then answers until a signal ends it.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 ended, 2 a wrong setting or input, or an address at which nobody can listen.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(ServeSettings, USAGE))
        return 0 if arguments else 2
    try:
        settings = read_settings(ServeSettings, arguments)
        check_port(settings.host, settings.port)
        import uvicorn  # noqa: PLC0415 - of an extra
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError:
        print('error: expected the packages of an extra, found none; pip install "e2net[serve]"', file=sys.stderr)
        return 2
    # Only now, as these take seconds to import.
    from e2net.runs import user_errors  # noqa: PLC0415
    from e2net.serve.app import load_model, make_app, to_environment  # noqa: PLC0415

    with user_errors():  # also where workers load it again
        model = load_model(settings)
    print(f"listening at http://{settings.host}:{settings.port}", flush=True)
    options: dict[str, Any] = {
        **{"host": settings.host, "port": settings.port, "log_level": "warning", "access_log": False},
        "timeout_graceful_shutdown": settings.timeout,
    }
    if settings.workers == 1:
        uvicorn.run(make_app(model, settings), **options)
    else:
        del model
        to_environment(settings)
        # A worker that imports libraries, or is busy, may not say that it lives: after five seconds it would be killed.
        options |= {"workers": settings.workers, "timeout_worker_healthcheck": settings.timeout}
        uvicorn.run("e2net.serve.app:from_environment", factory=True, **options)
    return 0


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
