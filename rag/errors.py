"""Mistakes a user can make, told in one sentence.

Everything a user can get wrong (a missing file, a malformed line, an index of another encoder) is raised as
`UserError` with a message that says what was found, what was expected and what to do. The scripts print the
message and exit with code 2; any other exception is a bug and keeps its traceback.
"""

import re


class UserError(Exception):
    """A mistake of the user's: `str(error)` is the one sentence to show."""


def one_line(text: str) -> str:
    """Text with every run of white space as one space, for a message."""
    return re.sub(r"\s+", " ", text).strip()
