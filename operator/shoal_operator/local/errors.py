"""What the operator reports to people. The text says what to do next."""

from __future__ import annotations


class CannotRun(Exception):
    """This machine cannot run the manifests as they are; nothing has been started."""
