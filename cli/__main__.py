"""`python -m unetrt.cli` is `unetrt`."""

import sys

from .main import main

sys.exit(main())
