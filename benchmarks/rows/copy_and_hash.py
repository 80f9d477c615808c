"""Copy byte ranges to one file and hash them: the minimum work of an extraction. Standard library only.

Arguments: a JSON list of [path, start, length], and the file to write.
"""

import hashlib
import json
import sys

ranges, target = json.loads(sys.argv[1]), sys.argv[2]
digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
with open(target, "wb", buffering=0) as out:
    for path, start, length in ranges:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            while length:
                count = file.readinto(buffer[:length])
                out.write(buffer[:count])
                digest.update(buffer[:count])
                length -= count
