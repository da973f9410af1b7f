"""A checkpoint that could not be written must not look like one."""

import os
import shutil

from swift_kd_plugin.errors import KDError


def describe_failed_save(error: Exception, folder: str, last_good: str | None, is_owner: bool) -> Exception:
    """Takes the half-written `folder` away (on the owning rank) and returns the exception to raise."""
    if is_owner and os.path.isdir(folder):
        shutil.rmtree(folder, ignore_errors=True)
    reason = _find_os_error(error)
    if reason is None:
        return error
    kept = f"the last good checkpoint is {last_good}" if last_good else "there was no earlier checkpoint"
    return KDError(f"Writing {folder} failed ({reason.strerror or reason}); the half-written folder is removed, {kept}.")


def _find_os_error(error: BaseException | None) -> OSError | None:
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
