"""`python -m streamstats`."""

import sys

from .cli import main

sys.exit(main())
