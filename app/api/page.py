"""The files of the page."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles


class Page(StaticFiles):
    """Browsers keep the files, but ask every time whether they have changed: after an update a new part of
    the page never meets an old one.
    """

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file, or that it has not changed."""
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response
