"""The one error of use: a sentence with the values and what to do about them."""


class UsageError(ValueError):
    """Input, a file or an option is unusable; the command line prints it alone and exits with 2."""
