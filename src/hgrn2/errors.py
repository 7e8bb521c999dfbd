"""The one exception that a user's mistake raises: the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """Something the user can mend: a missing file, sizes that do not divide, a checkpoint of another model.

    The message is one line, says what is wrong and what to do. Library callers may catch it; `hgrn2` on the command
    line prints it after `error:` and exits with code 2. Programming errors stay ordinary exceptions.
    """
