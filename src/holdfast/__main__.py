"""`python -m holdfast`: the command."""

import sys

from holdfast.cli import main

sys.exit(main())
