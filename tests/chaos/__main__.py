"""`python -m tests.chaos`: see `run`."""

import sys

from tests.chaos.run import main

sys.exit(main())
