"""Who may ask what of the app: this machine's own pages alone.

A page of another site, open in the same browser, can send requests to 127.0.0.1. So a request must name a host that the
app serves (which stops DNS rebinding), must not come from another origin, and must carry a token that only the app's
own page can read, where it changes anything. The content security policy keeps the page from loading or sending
anything elsewhere, whatever a run record holds.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Collection

from fastapi import Request, Response
from fastapi.responses import JSONResponse

Next = Callable[[Request], Awaitable[Response]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the app's own page: nothing from elsewhere, no inline script. Charts set the style attributes of their marks."""
DOCUMENT_POLICY = (
    "sandbox allow-scripts allow-downloads allow-popups; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of a run's own HTML, which anybody may have written: an origin of its own, from which the app cannot be asked."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
READS = ("GET", "HEAD")
TOKEN_HEADER = "X-CSRF-Token"


class Gate:
    """Checks every request before anything else sees it."""

    def __init__(self, hosts: Collection[str], token: str | None = None) -> None:
        self.hosts = frozenset(hosts)
        self.token = token or secrets.token_urlsafe(24)

    def refusal(self, request: Request) -> tuple[int, str] | None:
        """Status and sentence where the request is refused."""
        host = request.headers.get("host", "")
        if host not in self.hosts:
            return 421, f"the app does not answer to the host {host[:60]!r}"
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] not in self.hosts:
            return 403, f"requests from {origin[:60]!r} are refused"
        if request.headers.get("sec-fetch-site") == "cross-site":
            return 403, "requests of other sites are refused"
        if request.method in READS:
            return None
        given = request.headers.get(TOKEN_HEADER, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 403, f"a change needs the header {TOKEN_HEADER} with the token of this page; reload it"
        return None

    async def __call__(self, request: Request, call_next: Next) -> Response:
        """The response of the app, or a refusal, with the headers that all have."""
        refused = self.refusal(request)
        if refused is not None:
            response: Response = JSONResponse({"error": refused[1]}, refused[0])
        else:
            response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Content-Security-Policy", POLICY)
        response.headers.setdefault("Cache-Control", "no-store")
        return response
