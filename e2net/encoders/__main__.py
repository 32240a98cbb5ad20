"""``python -m e2net.encoders``: lists the encoders and what they cost."""

import sys
from collections.abc import Sequence

from e2net.arguments import help_text, print_anywhere
from e2net.encoders.options import USAGE, ListingSettings


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if {"-h", "--help", "help"} & set(arguments):
        print(help_text(ListingSettings, USAGE))
        return 0
    from e2net.encoders.listing import show  # noqa: PLC0415 - torch takes seconds

    return show(arguments)


if __name__ == "__main__":
    print_anywhere()
    sys.exit(main(sys.argv[1:]))
