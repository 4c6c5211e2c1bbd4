"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input: the message is one clear sentence saying what is wrong, where, and what to do.

    Scripts print the message alone and exit with status 1; every other exception is a defect and keeps its traceback.
    """
