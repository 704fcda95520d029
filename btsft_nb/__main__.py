"""`python -m btsft_nb` is the command `btsft`."""

import sys

from .cli.main import main

sys.exit(main())
