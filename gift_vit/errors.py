"""The two kinds of error a person sees as one line, without a traceback."""


class ConfigError(ValueError):
    """A user's mistake: what was given, what was expected, what to do. Commands exit with code 2."""


class RunError(RuntimeError):
    """A run that failed through no fault of its configuration (NaN loss, full disk). Commands exit with code 1."""
