"""These take minutes and gigabytes: only ``make test-size`` collects them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("SKATE_TEST_SIZE") else ["test_*.py"]
