"""The gateway under the libraries that applications use; `make sdks` says where those are."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TUNEPROOF_SDKS") else ["test_*.py"]
