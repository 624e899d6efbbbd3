"""The one error that a user's mistake raises, and how a command ends on it or is asked to end."""

import functools
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input, in one line: what, where, expected, found, what to do.

    Every package raises it for what a user can mend (a file, a field, a config key, a model
    folder); a defect of ours is never an InputError.
    """


class Terminated(BaseException):
    """The run was asked to end. No Exception: nothing on the way up takes it for a failure."""


def exits_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Makes a job's `main` end with one line on stderr: status 2 on an InputError, and 1 where a
    training stops because its numbers are none (FloatingPointError)."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except InputError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            raise SystemExit(2) from None
        except FloatingPointError as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped
