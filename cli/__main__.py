"""`python -m layer_surgeon_cli` does what `surgeon` does."""

from .main import main

main()
