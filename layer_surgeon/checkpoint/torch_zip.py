"""The zip file that a PyTorch checkpoint is: its directory, and where the bytes of an entry begin. Reads no weights.

A zip file ends with a directory of its entries; each entry repeats its name in a short header of its own, whose length
only it knows (PKWARE's APPNOTE.TXT, sections 4.3 and 4.4). torch stores entries uncompressed, so that an entry's bytes
are a range of the file. Everything the directory says is checked against the file's size and against each other: an
archive whose entries overlap, or grow when they are unpacked, is refused.
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
# torch writes about 75 bytes per tensor: these are 50,000 tensors in one file, and 0.3 s.
_MAX_DIRECTORY_BYTES = 4_000_000
_ZIP64, _IN_ZIP64, _IN_ZIP64_SHORT = 1, 0xFFFFFFFF, 0xFFFF
_ENCRYPTED = 1
# torch.save before 1.6 began with this number as a pickle; some before 0.1.10 were tar archives.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257


@dataclass(frozen=True, kw_only=True, slots=True)
class ZipEntry:
    """One entry of a zip file, as the directory has it.

    Attributes:
        name: Its name.
        header: Absolute position of its own header.
        limit: Absolute position that its bytes end at or before: where the next entry begins, or the directory.
        num_bytes: How many bytes it has.
        crc: The CRC-32 of its bytes; 0 where the writer left it out.
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
    """The entries of a zip file, by name, in the file's order; reads its end and its directory.

    Raises:
        CheckpointError: It is no zip file, a damaged or compressed one, or one of torch's old formats.
        SourceError: The file can't be read.
    """
    size = source.size(file)
    if size < _END.size:
        raise CheckpointError(f"{file} has {size} bytes, too few for a PyTorch checkpoint. Copy or download it again.")
    begin = max(0, size - _TAIL_BYTES)
    tail = source.read_range(file, begin, size - begin)
    directory = _find_directory(tail, begin, file)
    if directory is None:
        raise _no_zip(tail[:512] if begin == 0 else source.read_range(file, 0, 512), file)
    start, end = directory.start, directory.start + directory.num_bytes
    # A checkpoint's whole directory mostly lies within what was read already: one request less.
    raw = tail[start - begin : end - begin] if start >= begin else source.read_range(file, start, end - start)
    return parse_directory(raw, file, directory.num_entries, start)


def _find_directory(tail: bytes, begin: int, file: str) -> _Directory | None:
    """The directory's place, from the last bytes of the file; they begin at `begin`. None: no zip file ends here."""
    position = tail.rfind(b"PK\5\6")
    while position >= 0:
        if len(tail) - position >= _END.size:
            fields = _END.unpack_from(tail, position)
            if position + _END.size + fields[7] == len(tail):
                return _directory_at(tail, begin, position, fields, file)
        position = tail.rfind(b"PK\5\6", 0, position)
    return None


def _no_zip(head: bytes, file: str) -> CheckpointError:
    """What to say about a file that does not end as a zip file, from its first bytes."""
    if head.startswith(_OLD_MAGIC) or head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        return CheckpointError(
            f"{file} is in the format that torch.save wrote before version 1.6, which can't be read in parts. "
            "Convert it once where you trust it: torch.save(torch.load(file, weights_only=True), file), or "
            "save_pretrained of transformers, which writes safetensors files."
        )
    if head.startswith(b"PK\3\4"):
        return CheckpointError(f"{file} is truncated: the end of a zip file is missing. Copy or download it again.")
    return CheckpointError(
        f"{file} begins with {head[:8]!r}, which is no PyTorch checkpoint: a zip file, as torch.save writes it, is "
        "expected. Check what the file is, or get it again."
    )


def _directory_at(tail: bytes, begin: int, position: int, fields: tuple[int, ...], file: str) -> _Directory:
    _, disk, disk_of_directory, on_disk, count, num_bytes, start, _ = fields
    end = begin + position
    at = position - _END64_LOCATOR.size
    if at >= 0 and tail.startswith(b"PK\6\7", at):
        _, _, end64, disks = _END64_LOCATOR.unpack_from(tail, at)
        at -= _END64.size
        if at < 0 or not tail.startswith(b"PK\6\6", at) or end64 != begin + at or disks > 1:
            raise _damaged(file, "the record of its length in 64 bits is not where it should be")
        _, _, _, _, disk, disk_of_directory, on_disk, count, num_bytes, start = _END64.unpack_from(tail, at)
        end = end64
    if disk or disk_of_directory or on_disk != count:
        raise _damaged(file, "it is one of several parts")
    if start + num_bytes != end:
        raise _damaged(
            file, f"its directory should lie at byte {start:,} and take {num_bytes:,}, but it ends at byte {end:,}"
        )
    if num_bytes > _MAX_DIRECTORY_BYTES or count * _ENTRY.size > num_bytes:
        raise _damaged(file, f"its directory has {count:,} entries in {num_bytes:,} bytes, which no checkpoint has")
    return _Directory(num_entries=count, start=start, num_bytes=num_bytes)


def parse_directory(raw: bytes, file: str, num_entries: int, start: int) -> dict[str, ZipEntry]:
    """The entries that a zip file's directory lists, by name, in the file's order.

    Args:
        raw: The directory.
        file: The file's name.
        num_entries: How many entries it should have.
        start: Absolute position of the directory.

    Raises:
        CheckpointError: Entries are compressed, encrypted, listed twice, or lie over each other.
    """
    found: list[tuple[int, int, str, int]] = []
    position = 0
    try:
        for _ in range(num_entries):
            position = _parse_entry(raw, position, file, found)
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged(file, f"its directory can't be read ({error})") from error
    if position != len(raw):
        raise _damaged(file, f"its directory has {len(raw) - position:,} bytes that belong to no entry")
    found.sort()
    entries: dict[str, ZipEntry] = {}
    for (header, num_bytes, name, crc), (limit, *_) in pairwise([*found, (start, 0, "", 0)]):
        if header + _LOCAL.size + len(name.encode()) + num_bytes > limit:
            raise _damaged(file, f"its entry {name[:100]!r} reaches beyond byte {limit:,}, where the next part begins")
        if name in entries:
            raise _damaged(file, f"it has the entry {name[:100]!r} twice")
        entries[name] = ZipEntry(name=name, header=header, limit=limit, num_bytes=num_bytes, crc=crc)
    return entries


def _parse_entry(raw: bytes, position: int, file: str, found: list[tuple[int, int, str, int]]) -> int:
    """Read one entry of the directory; the position of the next."""
    fields = _ENTRY.unpack_from(raw, position)
    signature, _, _, flags, method, _, _, crc, packed, num_bytes, name_length, extra_length, comment_length = fields[
        :13
    ]
    disk, header = fields[13], fields[16]
    position += _ENTRY.size
    if signature != b"PK\1\2":
        raise _damaged(file, "its directory has something else in an entry's place")
    name = raw[position : position + name_length].decode("utf-8")
    position += name_length
    extra = raw[position : position + extra_length]
    position += extra_length + comment_length
    if position > len(raw):
        raise _damaged(file, "its directory ends in the middle of an entry")
    if flags & _ENCRYPTED:
        raise _damaged(file, f"its entry {name[:100]!r} is encrypted")
    wide = iter(_wide_values(extra))
    num_bytes = next(wide, num_bytes) if num_bytes == _IN_ZIP64 else num_bytes
    packed = next(wide, packed) if packed == _IN_ZIP64 else packed
    header = next(wide, header) if header == _IN_ZIP64 else header
    if method != 0 or packed != num_bytes:
        raise CheckpointError(
            f"In {file} the entry {name[:100]!r} is compressed ({packed:,} bytes that become {num_bytes:,}). "
            "torch.save stores tensors as they are, and only such can be read in parts: unpack the file and pack it "
            "without compression (zip -0), or get the original."
        )
    if disk not in (0, _IN_ZIP64_SHORT):
        raise _damaged(file, "it is one of several parts")
    found.append((header, num_bytes, name, crc))
    return position


def _wide_values(extra: bytes) -> tuple[int, ...]:
    """The numbers of 64 bits in an entry's extra field, for those that do not fit into 32."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        if tag == _ZIP64:
            content = extra[position + 4 : position + 4 + length]
            return struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8])
        position += 4 + length
    return ()


def local_header_bytes(entry: ZipEntry) -> int:
    """How many bytes of an entry's own header tell where its bytes begin."""
    return _LOCAL.size + len(entry.name.encode())


def data_offset(raw: bytes, entry: ZipEntry, file: str) -> int:
    """The absolute position of an entry's bytes, from the first `local_header_bytes` of its own header.

    Raises:
        CheckpointError: Header and directory contradict each other.
    """
    signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(raw)
    if signature != b"PK\3\4" or raw[_LOCAL.size : _LOCAL.size + name_length] != entry.name.encode():
        raise _damaged(file, f"the directory says that {entry.name[:100]!r} is at byte {entry.header:,}, but it is not")
    offset = entry.header + _LOCAL.size + int(name_length) + int(extra_length)
    if method != 0 or flags & _ENCRYPTED or offset + entry.num_bytes > entry.limit:
        raise _damaged(file, f"its entry {entry.name[:100]!r} is described in two ways that contradict each other")
    return offset


def _damaged(file: str, how: str) -> CheckpointError:
    return CheckpointError(f"{file} is a damaged or hostile zip file: {how}. Get it again from a place that you trust.")
