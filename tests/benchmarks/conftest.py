"""The programs in benchmarks/ are no package: their folder is put on the path."""

import sys

from shared_data import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
