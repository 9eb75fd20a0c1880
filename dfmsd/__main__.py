"""`python -m dfmsd`."""

from dfmsd.cli import main

main()
