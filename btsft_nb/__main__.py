"""`python -m btsft_nb` is the command `btsft`."""

from .cli.main import main

main()
