"""`python -m embargo` is the command `embargo`."""

from embargo.cli import main

main()
