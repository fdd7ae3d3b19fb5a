"""The page that a browser sees: drop images, see what the model says. Nothing on it comes from elsewhere."""

from __future__ import annotations

import html
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from ..service import Service

_PAGE = Path(__file__).parents[1] / "page.html"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
}


def router(service: Service) -> APIRouter:
    """The route."""
    routes, settings, page = APIRouter(tags=["page"]), service.settings, _PAGE.read_text()
    values = {
        "NAME": settings.name,
        "VERSION": f"version {settings.version}" if settings.version else "",
        "KEY": "wanted" if settings.api_keys else "",
        "EXPLAINS": "yes" if service.signature.explains else "",
    }
    for name, value in values.items():
        page = page.replace(f"{{{{{name}}}}}", html.escape(value))

    @routes.get("/", summary="A page to try the model")
    async def index(request: Request) -> Response:
        """A page for browsers; `{"status": "alive"}` for everybody else, as KServe's V1 protocol wants."""
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers=_HEADERS)
        return JSONResponse({"status": "alive"})

    return routes
