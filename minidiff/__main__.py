"""``python -m minidiff`` is ``minidiff``."""

import sys

from minidiff.cli.main import main

sys.exit(main())
