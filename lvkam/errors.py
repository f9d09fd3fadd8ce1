"""What every error that a user's input can cause has in common."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message alone says what is wrong and what is allowed; nothing has been written."""


class FailureError(Exception):
    """Something that was to be done has failed while running; the message says what."""
