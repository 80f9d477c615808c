"""The `surgeon` command. One file per command: parse, call one function of the library, render."""
