"""The `surgeon` command. The module of a command parses options, calls one library function and shows the result."""
