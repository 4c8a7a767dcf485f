"""What adoption refuses; each message is one line that says what to do."""


class NetworkError(ValueError):
    """A network that can't be made or filled with its weights."""


class OutputError(ValueError):
    """A folder that the artifact can't be written to."""


class ImagesError(ValueError):
    """Images or class names that can't be used."""
