"""`python -m tests.matrix`: see `run`."""

import sys

from tests.matrix.run import main

sys.exit(main(sys.argv[1:]))
