"""Whether a file is an archive or compressed, found without unpacking: what is in one can be of any size and kind."""

import zlib

from maas_package.content import Content

_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"PK\x07\x08": "a zip archive",
    b"\x1f\x8b\x08": "compressed with gzip",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x5d\x00\x00\x80\x00\xff": "compressed with lzma",
}
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
_TAR_MARK_AT = 257
_ZIP_END_BYTES = 22
_ZIP_COMMENT_BYTES = 2**16
_TRIED_BYTES = 512


def archive_kind(content: Content) -> str:
    """Return what kind of archive the file is; an empty text for none."""
    for beginning, kind in _BEGINNINGS.items():
        if content[: len(beginning)] == beginning:
            return kind
    if content[:3] == b"BZh" and content[4:10] in _BZIP2_BLOCKS:
        return "compressed with bzip2"
    if content[_TAR_MARK_AT : _TAR_MARK_AT + 5] == b"ustar":
        return "a tar archive"
    if _ends_like_zip(content):
        return "a zip archive"
    return "compressed with zlib" if _is_zlib(content[:_TRIED_BYTES]) else ""


def _ends_like_zip(content: Content) -> bool:
    """Whether a zip reader would find its directory, which may stand at the end of anything."""
    begin = max(0, len(content) - _ZIP_END_BYTES - _ZIP_COMMENT_BYTES)
    end = len(content)
    while (found := content.rfind(b"PK\x05\x06", begin, end)) >= 0:
        comment_bytes = int.from_bytes(content[found + 20 : found + 22], "little")
        if found + _ZIP_END_BYTES + comment_bytes == len(content):
            return True
        end = found
    return False


def _is_zlib(beginning: bytes) -> bool:
    if len(beginning) < 8 or beginning[0] & 0x0F != 8 or int.from_bytes(beginning[:2], "big") % 31:
        return False
    unpacking = zlib.decompressobj()
    try:
        return bool(unpacking.decompress(beginning, _TRIED_BYTES))
    except zlib.error:
        return False
