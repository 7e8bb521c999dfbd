"""`python -m hgrn2`."""

import sys

from hgrn2.cli.main import entry

sys.exit(entry())
