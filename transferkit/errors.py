"""Errors that a user can fix, as one message: what is wrong, where, and the remedy."""

from dataclasses import dataclass


@dataclass
class UserError(Exception):
    """An error that the user can fix; shown as one short message, never as a traceback.

    what: one line that names the thing and what is wrong with it.
    where: further lines of detail (counts, file names, key paths); may be empty.
    remedy: what to do about it; may be empty.
    exit_code: 1 when the work failed, 2 when the command was wrong (see `usage_error`).
    """

    what: str
    where: str = ""
    remedy: str = ""
    exit_code: int = 1

    def __str__(self) -> str:
        """Return `what`, `where` and `remedy` on separate lines, all but the first indented."""
        lines = [line for part in (self.where, self.remedy) for line in part.splitlines() if line]
        return "\n".join([self.what, *(f"       {line}" for line in lines)])


def usage_error(what: str, where: str = "", remedy: str = "") -> UserError:
    """Return the error for a wrong command or option: exit code 2."""
    return UserError(what, where, remedy, exit_code=2)
