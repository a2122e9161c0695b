"""The HTTP service: one model, many clients, and a page to try it on. ``gitfast serve`` runs it.

``create_app(model)`` gives the same service as an ASGI application, to be mounted or run by any server. It needs the
extra ``gitfast[serve]``; see ``docs/serving.md``.
"""

from gitfast.serve.app import create_app
from gitfast.serve.settings import Settings

__all__ = ["Settings", "create_app"]
