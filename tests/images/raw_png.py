"""Write PNG files byte by byte, for pictures that Pillow cannot write."""

import struct
import zlib


def raw_png(width, height, bits, colour_type, data):
    """Return a PNG file with a header of these numbers and any uncompressed image data."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
