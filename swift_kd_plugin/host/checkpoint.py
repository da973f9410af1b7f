"""A checkpoint that could not be written must not look like one."""

import os
import re
import shutil

from swift_kd_plugin.errors import KDError

# Writers in Rust and C++ (safetensors, torch) report a full disk in their own exceptions.
WRITE_FAILURE = re.compile(r"No space left on device|File too large|Disk quota exceeded|failed writing file")


def describe_failed_save(error: Exception, folder: str, last_good: str | None, is_owner: bool) -> Exception:
    """Takes the half-written `folder` away (on the owning rank) and returns the exception to raise."""
    if is_owner and os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)
    reason = _find_write_failure(error)
    if reason is None:
        return error
    kept = f"the last good checkpoint is {last_good}" if last_good else "there is no earlier checkpoint"
    return KDError(f"Writing {folder} failed ({reason}); the half-written folder is removed, {kept}.")


def _find_write_failure(error: BaseException | None) -> str | None:
    while error is not None:
        found = WRITE_FAILURE.search(str(error))
        if found:
            return found[0]
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None
