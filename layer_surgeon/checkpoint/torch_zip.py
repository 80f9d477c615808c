"""Parse the zip directory of a PyTorch checkpoint and locate the bytes of its entries. Reads no weights.

A zip file ends with a directory of its entries. Each entry also has its own header, whose length the directory does not
state (PKWARE's APPNOTE.TXT, sections 4.3 and 4.4). torch stores entries uncompressed, so the bytes of an entry are a
range of the file. The directory is checked against the size of the file, and its entries against each other. An archive
with overlapping or compressed entries is refused.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

from layer_surgeon.checkpoint.sources.base import Source
from layer_surgeon.errors import CheckpointError

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_COMMENT_BYTES = 65_535
_TAIL_BYTES = _MAX_COMMENT_BYTES + _END.size + _END64_LOCATOR.size + _END64.size
# torch writes about 75 bytes per tensor: this allows 50,000 tensors in one file, which take 0.3 s.
_MAX_DIRECTORY_BYTES = 4_000_000
_ZIP64, _USES_ZIP64, _USES_ZIP64_SHORT = 1, 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 1
# Files of torch.save before 1.6 begin with this pickled number. Some files from before 0.1.10 are tar archives.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MAGIC, _TAR_MAGIC_POSITION = b"ustar", 257


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipEntry:
    """One entry of a zip file, as listed in the directory.

    Attributes:
        name: Its name.
        header: Absolute position of its own header.
        limit: Absolute position of the next entry or the directory. The entry's bytes end here or earlier.
        num_bytes: Its size in bytes.
        crc: The CRC-32 of its bytes; 0 if the writer left it out.
    """

    name: str
    header: int
    limit: int
    num_bytes: int
    crc: int


@dataclass(frozen=True, kw_only=True)
class _Directory:
    num_entries: int
    start: int
    num_bytes: int


def read_entries(source: Source, file: str) -> dict[str, ZipEntry]:
    """Read the entries of a zip file by name, in the order of the file. Reads only the end of the file.

    Raises:
        CheckpointError: It is not a zip file, is damaged or compressed, or has one of torch's old formats.
        SourceError: The file can't be read.
    """
    size = source.size(file)
    if size < _END.size:
        raise CheckpointError(f"{file} has {size} bytes, too few for a PyTorch checkpoint. Copy or download it again.")
    tail_start = max(0, size - _TAIL_BYTES)
    tail = source.read_range(file, tail_start, size - tail_start)
    directory = _find_directory(tail, tail_start, file)
    if directory is None:
        raise _not_a_zip(tail[:512] if tail_start == 0 else source.read_range(file, 0, 512), file)
    start, end = directory.start, directory.start + directory.num_bytes
    # The directory of most checkpoints is within the bytes already read, which saves a request.
    raw = (
        tail[start - tail_start : end - tail_start]
        if start >= tail_start
        else source.read_range(file, start, end - start)
    )
    return parse_directory(raw, file, directory.num_entries, start)


def _find_directory(tail: bytes, tail_start: int, file: str) -> _Directory | None:
    """Locate the directory.

    Args:
        tail: The last bytes of the file.
        tail_start: Absolute position of `tail`.
        file: The name of the file.

    Returns:
        The directory's position and size; None if this is not the end of a zip file.
    """
    position = tail.rfind(b"PK\5\6")
    while position >= 0:
        if len(tail) - position >= _END.size:
            fields = _END.unpack_from(tail, position)
            if position + _END.size + fields[7] == len(tail):
                return _directory_at(tail, tail_start, position, fields, file)
        position = tail.rfind(b"PK\5\6", 0, position)
    return None


def _not_a_zip(first_bytes: bytes, file: str) -> CheckpointError:
    """Build the error for a file that does not end like a zip file, from its first bytes."""
    if first_bytes.startswith(_OLD_MAGIC) or first_bytes[_TAR_MAGIC_POSITION:].startswith(_TAR_MAGIC):
        return CheckpointError(
            f"{file} has the format that torch.save wrote before version 1.6, which can't be read in parts. If you "
            "trust the file, convert it once with torch.save(torch.load(file, weights_only=True), file), or with "
            "transformers' save_pretrained, which writes safetensors files."
        )
    if first_bytes.startswith(b"PK\3\4"):
        return CheckpointError(f"{file} is truncated: the end of the zip file is missing. Copy or download it again.")
    return CheckpointError(
        f"{file} is not a PyTorch checkpoint: it begins with {first_bytes[:8]!r}, but a zip file from torch.save is "
        "expected. Check what the file is, or get it again."
    )


def _directory_at(tail: bytes, tail_start: int, position: int, fields: tuple[int, ...], file: str) -> _Directory:
    _, disk, disk_of_directory, on_disk, count, num_bytes, start, _ = fields
    end = tail_start + position
    record_position = position - _END64_LOCATOR.size
    if record_position >= 0 and tail.startswith(b"PK\6\7", record_position):
        _, _, end64, disks = _END64_LOCATOR.unpack_from(tail, record_position)
        record_position -= _END64.size
        if (
            record_position < 0
            or not tail.startswith(b"PK\6\6", record_position)
            or end64 != tail_start + record_position
            or disks > 1
        ):
            raise _damaged(file, "its zip64 end record is not at the expected position")
        _, _, _, _, disk, disk_of_directory, on_disk, count, num_bytes, start = _END64.unpack_from(
            tail, record_position
        )
        end = end64
    if disk or disk_of_directory or on_disk != count:
        raise _damaged(file, "it is one of several parts")
    if start + num_bytes != end:
        raise _damaged(
            file,
            f"its directory should begin at byte {start:,} and have {num_bytes:,} bytes, but it ends at byte {end:,}",
        )
    if num_bytes > _MAX_DIRECTORY_BYTES or count * _ENTRY.size > num_bytes:
        raise _damaged(file, f"its directory has {count:,} entries in {num_bytes:,} bytes, which is impossible")
    return _Directory(num_entries=count, start=start, num_bytes=num_bytes)


def parse_directory(raw: bytes, file: str, num_entries: int, start: int) -> dict[str, ZipEntry]:
    """Parse the directory of a zip file into its entries by name, in the order of the file.

    Args:
        raw: The directory.
        file: The file's name.
        num_entries: The expected number of entries.
        start: Absolute position of the directory.

    Raises:
        CheckpointError: Entries are compressed, encrypted, duplicate or overlapping.
    """
    records: list[tuple[int, int, str, int]] = []
    position = 0
    try:
        for _ in range(num_entries):
            position = _parse_entry(raw, position, file, records)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(file, f"its directory can't be read ({error})") from error
    if position != len(raw):
        raise _damaged(file, f"its directory has {len(raw) - position:,} extra bytes after the last entry")
    records.sort()
    entries: dict[str, ZipEntry] = {}
    for (header, num_bytes, name, crc), (limit, *_) in pairwise([*records, (start, 0, "", 0)]):
        if header + _LOCAL.size + len(name.encode()) + num_bytes > limit:
            raise _damaged(file, f"its entry {name[:100]!r} extends beyond byte {limit:,}, where the next part begins")
        if name in entries:
            raise _damaged(file, f"it has the entry {name[:100]!r} twice")
        entries[name] = ZipEntry(name=name, header=header, limit=limit, num_bytes=num_bytes, crc=crc)
    return entries


def _parse_entry(raw: bytes, position: int, file: str, records: list[tuple[int, int, str, int]]) -> int:
    """Parse one entry of the directory, append it to `records` and return the position of the next."""
    fields = _ENTRY.unpack_from(raw, position)
    signature, _, _, flags, method, _, _, crc, packed, num_bytes, name_length, extra_length, comment_length = fields[
        :13
    ]
    disk, header = fields[13], fields[16]
    position += _ENTRY.size
    if signature != b"PK\1\2":
        raise _damaged(file, "its directory has something else in place of an entry")
    name = raw[position : position + name_length].decode("utf-8")
    position += name_length
    extra = raw[position : position + extra_length]
    position += extra_length + comment_length
    if position > len(raw):
        raise _damaged(file, "its directory ends in the middle of an entry")
    if flags & _ENCRYPTED:
        raise _damaged(file, f"its entry {name[:100]!r} is encrypted")
    wide_values = iter(_zip64_values(extra))
    num_bytes = next(wide_values, num_bytes) if num_bytes == _USES_ZIP64 else num_bytes
    packed = next(wide_values, packed) if packed == _USES_ZIP64 else packed
    header = next(wide_values, header) if header == _USES_ZIP64 else header
    if method != 0 or packed != num_bytes:
        raise CheckpointError(
            f"In {file} the entry {name[:100]!r} is compressed ({packed:,} bytes that become {num_bytes:,}). Only "
            "uncompressed entries, as torch.save writes them, can be read in parts. Unpack the file and pack it "
            "without compression (zip -0), or get the original."
        )
    if disk not in (0, _USES_ZIP64_SHORT):
        raise _damaged(file, "it is one of several parts")
    records.append((header, num_bytes, name, crc))
    return position


def _zip64_values(extra: bytes) -> tuple[int, ...]:
    """Return the 64-bit numbers in an entry's extra field, which replace those that don't fit into 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        if tag == _ZIP64:
            content = extra[position + 4 : position + 4 + length]
            return struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8])
        position += 4 + length
    return ()


def local_header_bytes(entry: ZipEntry) -> int:
    """Return how many bytes of an entry's own header are needed to locate its content."""
    return _LOCAL.size + len(entry.name.encode())


def data_offset(raw: bytes, entry: ZipEntry, file: str) -> int:
    """Return the absolute position of an entry's content, from the first `local_header_bytes` of its own header.

    Raises:
        CheckpointError: The header and the directory contradict each other.
    """
    signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(raw)
    if signature != b"PK\3\4" or raw[_LOCAL.size : _LOCAL.size + name_length] != entry.name.encode():
        raise _damaged(
            file, f"the directory lists the entry {entry.name[:100]!r} at byte {entry.header:,}, but it is not there"
        )
    offset = entry.header + _LOCAL.size + int(name_length) + int(extra_length)
    if method != 0 or flags & _ENCRYPTED or offset + entry.num_bytes > entry.limit:
        raise _damaged(file, f"its entry {entry.name[:100]!r} has a header that contradicts the directory")
    return offset


def _damaged(file: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is a damaged or malicious zip file: {problem}. Get it again from a source that you trust."
    )
