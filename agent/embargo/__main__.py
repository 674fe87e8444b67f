"""`python -m embargo` is the command `embargo`."""

from embargo.cli.verbs import main

main()
