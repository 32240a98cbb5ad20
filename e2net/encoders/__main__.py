"""``python -m e2net.encoders``: lists the encoders and what they cost."""

import sys

from e2net.encoders.listing import main

sys.exit(main(sys.argv[1:]))
