"""A relay between Listmonk and Amazon SES that loses no mail to rate limits.

Read ``README.md`` for what it does, ``pyproject.toml`` (``importlinter``) for the
rooms of this package and which may know which.
"""

__version__ = "0.1.0"
