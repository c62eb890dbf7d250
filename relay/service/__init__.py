"""The relay as a process: signals, logging, the loop it runs on, and its whole life."""

from relay.service.serving import serve

__all__ = ["serve"]
