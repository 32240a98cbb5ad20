"""``python -m e2net.encoders``: lists the encoders and what they cost."""

import sys

from e2net.arguments import print_anywhere
from e2net.encoders.listing import main

print_anywhere()
sys.exit(main(sys.argv[1:]))
