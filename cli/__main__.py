"""`python -m layer_surgeon_cli` is the same as `surgeon`."""

from .main import main

main()
