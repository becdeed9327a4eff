"""``python -m minidiff`` is ``minidiff``, for ``torchrun -m minidiff``."""

import sys

from minidiff.cli.main import main

sys.exit(main())
