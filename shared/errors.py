"""Errors that users can fix, and the exit codes of commands."""

import errno

# Exit codes; 3: some slides or jobs failed, and the rest is done. The 85 of a stopped one is in `stop_signal`.
NOTHING_FAILED, REFUSED, SOME_FAILED = 0, 2, 3
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class UserError(Exception):
    """Input that only the user can mend; the message is one sentence with the file and the fix."""
