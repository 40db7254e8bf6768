"""Zip archives (.npz, torch's .pt): only entries that cost what they declare.

zipfile bounds what it unpacks of stored and deflated entries; of bz2 and lzma it does not, and
neither NumPy nor torch writes them.  Entries that lie over one another would let a small file hold
the same bytes under a thousand names.
"""

from __future__ import annotations

import zipfile

from jaxvol.data.io.opened import deflate_fault

LOCAL_HEADER = 30  # bytes before an entry's name and data
ENCRYPTED = 1


def check_entries(archive: zipfile.ZipFile, size: int, methods: tuple[int, ...]) -> None:
    """ValueError unless every entry is packed by one of `methods`, lies by itself within the
    file's `size` bytes and declares no more than it can hold.
    """
    end, before = 0, ""
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name = info.filename[:80]
        if info.compress_type not in methods or info.flag_bits & ENCRYPTED:
            expected = " or ".join(
                {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}[m] for m in methods
            )
            raise ValueError(
                f"its entry {name} is compressed by method {info.compress_type} or encrypted; "
                f"expected {expected} entries"
            )
        if info.header_offset < end:
            raise ValueError(f"its entries {before} and {name} lie over one another")
        end, before = info.header_offset + LOCAL_HEADER + info.compress_size, name
        if end > size:
            raise ValueError(
                f"its entry {name} should take {info.compress_size} bytes of a file of {size}"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise ValueError(f"its entry {name} is stored, but has two sizes")
        if fault := deflate_fault(info.file_size, info.compress_size):
            raise ValueError(f"its entry {name} {fault}")
