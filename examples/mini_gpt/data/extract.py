#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Takes the two novels of this folder out of Debian's package r-cran-janeaustenr.

    apt-get download r-cran-janeaustenr && dpkg -x r-cran-janeaustenr_*.deb x
    python3 extract.py x/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb .

The file is a chain of [uncompressed length, 4 bytes][zlib stream]; each stream is one R object, serialised (XDR, version 3).
"""
import struct
import sys
import zlib
from pathlib import Path

NOVELS = {"It is a truth universally acknowledged": "pride_and_prejudice.txt", "Emma Woodhouse, handsome, clever": "emma.txt"}


def objects(data):
    while data:
        stream = zlib.decompressobj()
        yield stream.decompress(data[4:])
        data = stream.unused_data


def lines(raw):
    """The lines of a character vector, or None if the object is something else."""
    if raw[:2] != b"X\n":
        return None
    at = 2 + 3 * 4
    (name,) = struct.unpack(">i", raw[at:at + 4])
    at += 4 + name
    flags, count = struct.unpack(">ii", raw[at:at + 8])
    if flags & 0xFF != 16:
        return None
    at += 8
    result = []
    for _ in range(count):
        _, length = struct.unpack(">ii", raw[at:at + 8])
        at += 8
        result.append(raw[at:at + max(length, 0)].decode("utf-8"))
        at += max(length, 0)
    return result


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    for raw in objects(source.read_bytes()):
        text = lines(raw)
        if not text:
            continue
        head = "\n".join(text[:200])
        for opening, name in NOVELS.items():
            if opening in head:
                (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")
                print(name, len(text), "lines")


if __name__ == "__main__":
    main()
