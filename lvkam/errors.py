"""What every error that a user's input can cause has in common."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message alone says what is wrong and what is allowed; nothing has been written."""


class DataError(InputError):
    """Data that cannot be had or read; one message says what is missing or wrong."""

    def __init__(self, message: str):
        # names within files, and those of images, may be made to move the cursor
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class FailureError(Exception):
    """Something that was to be done has failed while running; the message says what."""


class StoppedError(FailureError):
    """Of several processes the first one has failed, and says why: the others end without a word."""
