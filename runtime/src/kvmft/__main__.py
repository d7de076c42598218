"""`python -m kvmft`."""

import sys

from kvmft.cli.main import main

sys.exit(main())
