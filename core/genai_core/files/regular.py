"""Files that somebody else put there: only ordinary ones are opened, and read up to a limit.

A FIFO blocks whoever opens it, a device never ends, a link may lead to either. So nothing is read
before it is known what was opened.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

__all__ = ["NotRegular", "is_regular", "open_regular", "read_regular"]


class NotRegular(OSError):
    """What stands there is no ordinary file, or is larger than what is read."""


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading, unbuffered.

    Raises:
        NotRegular: It is a folder, a FIFO, a device or a socket.
        OSError: It is not there, or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(path)
    return io.FileIO(handle)


def read_regular(path: Path, most: int) -> bytes:
    """Return a file's bytes.

    Args:
        path: The file.
        most: Bytes that are read; a larger file is not.

    Raises:
        NotRegular: It is no ordinary file, or has more bytes.
        OSError: It is not there, or may not be read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(most + 1) if size <= most else b""
        # One read may give less than the file holds, and a file may grow meanwhile.
        while 0 < len(data) <= most and (more := stream.read(most + 1 - len(data))):
            data += more
    if size > most or len(data) > most:
        raise NotRegular(errno.EINVAL, f"has more than {most} bytes", str(path))
    return data


def is_regular(path: Path) -> bool:
    """Tell whether an ordinary file stands there, or a link to one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _no_file(path: Path) -> NotRegular:
    return NotRegular(errno.EINVAL, "is no ordinary file", str(path))
