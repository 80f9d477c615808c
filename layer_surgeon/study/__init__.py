"""COMPARE: arms x seeds x data -> tables and reports."""
