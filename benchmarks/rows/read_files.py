"""Read all files of the folders named on the command line once, 1 MiB at a time."""

import sys
from pathlib import Path

buffer = bytearray(1 << 20)
for path in (path for folder in sys.argv[1:] for path in sorted(Path(folder).iterdir())):
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
