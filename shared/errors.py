"""Errors that are the user's to mend: the command line prints their text alone, never a traceback.

A message says what was expected, what came, where, and what to do.
"""


class UserError(Exception):
    """A mistake in what the user gave."""

    exit_status = 2


class ConfigError(UserError):
    """An option has a value that cannot be."""


class CorpusError(UserError):
    """A corpus is unknown, unreadable, not what its hash says, or too short."""


class VocabularyError(UserError):
    """A text holds symbols that the vocabulary does not know."""


class ParameterError(UserError):
    """Parameters, optimizer slots or a state with missing, unexpected or misshapen entries."""


class CheckpointError(UserError):
    """A file that is not a whole checkpoint of this project."""


class ImplementationError(UserError):
    """An implementation, engine or device that cannot run here."""


class NotFiniteError(UserError):
    """Training broke down: a loss, a gradient or a parameter is infinite or not a number."""

    exit_status = 1


class WorkerLostError(UserError):
    """One of the workers that share each batch is gone."""

    exit_status = 1


class OutOfMemoryError(UserError):
    """The host or the device has not the memory that the sizes ask for."""

    exit_status = 1
