"""What shows that a file is the very one that was loaded before, without reading it.

Whoever writes to a file, or puts another in its place, changes its number, size or one of its times; the time of the
last change of its entry (ctime) nobody can set. Elsewhere, or where a file was copied, the stamp differs although the
content does not: then the checksum decides.
"""

import os
import time

SETTLED = 2_000_000_000  # ns: clocks of file systems may tick so slowly, and two writes in a tick look like one


def stamp_of(descriptor: int) -> str | None:
    """Tell an open file's stamp; None where its last change is too fresh to be told from another."""
    at = os.fstat(descriptor)
    if time.time_ns() - max(at.st_mtime_ns, at.st_ctime_ns) < SETTLED:
        return None
    return f"{at.st_dev}:{at.st_ino}:{at.st_size}:{at.st_mtime_ns}:{at.st_ctime_ns}"
