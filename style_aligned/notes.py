"""What people should know, and nothing is wrong with: advice on what they gave, and what was done about it."""


class Note(UserWarning):
    """Advice to the user of a command or a function. The command line shows it in a line, without a file's name."""
