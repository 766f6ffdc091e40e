"""`python -m tuneproof` is the command line."""

from tuneproof.cli import main

main()
