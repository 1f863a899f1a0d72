"""Checks each request before any other code sees it: its origin, its token and the size of its body.

The checks apply to all paths and methods, so a new route cannot forget them:

- Host must be a name of this console. Otherwise a website could let its own name point to this machine (DNS rebinding).
- Origin and Sec-Fetch-Site must be the console's own. Otherwise a website, or another program on this machine, could
  act with the cookie of a user's browser (CSRF).
- A token, or the cookie for which a browser exchanges it.
- The body's length, before the body is read. Bodies without a length are counted while they are read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import structlog
from gliaflow_runtime.logs import where
from gliaflow_runtime.visible import visible
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^][:/@\s]+)(:\d{1,5})?")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
SMALL_BYTES = 2**20  # of a body that is no upload
SILENT_S = 30.0  # the longest wait for the next bytes of a body
DRAIN_S = 2.0  # after an early answer: how long the rest of the body is read, so that the client sees the answer
OWN_SITES = ("same-origin", "none")  # Sec-Fetch-Site; "none": the user typed the address or used a bookmark
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TOKEN_PAGE = Path(__file__).with_name("pages") / "token.html"
TOKEN_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {  # of each answer that does not set its own
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log = structlog.get_logger()


@dataclass(frozen=True)
class Access:
    """What a request needs to be answered.

    Parameters
    ----------
    token: opens the console.
    names: HOST or HOST:PORT by which browsers may address it, besides those of LOCAL.
    upload_bytes: the largest uploaded file.
    """

    token: str
    names: tuple[str, ...]
    upload_bytes: int

    @property
    def cookie(self) -> tuple[str, str]:
        """Name and value. Browsers share cookies between the ports of a host, so each console has a name of its own."""
        key = self.token.encode()
        name = hashlib.sha256(b"name of " + key).hexdigest()[:12]
        return f"gliaflow_{name}", hmac.digest(key, b"gliaflow console", "sha256").hex()

    def admits(self, headers: Headers) -> bool:
        """Whether the request has the token or the cookie."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(token.strip(), self.token):
            return True
        name, value = self.cookie
        return _equal(cookie_parser(headers.get("cookie", "")).get(name, ""), value)

    def why_refused(self, headers: Headers, scope: Scope) -> str:
        """Why host name or origin of the request are refused; empty: they are not."""
        host = headers.get("host", "").lower()
        if not self._is_own(host):
            return (
                "this host name is not one of this console: open the address that gliaflow console printed, or add the "
                "name to GLIAFLOW_CONSOLE_NAMES"
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return "the request comes from another website (Origin): use the console's own page"
        opens_page = (scope["method"], scope["path"], headers.get("sec-fetch-dest")) == ("GET", "/", "document")
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and not opens_page:
            return "the request comes from another website (Sec-Fetch-Site): use the console's own page"
        return ""

    def limit(self, scope: Scope) -> int:
        """The largest body of the request, in bytes."""
        method, path = scope["method"], scope["path"]
        is_upload = (method == "POST" and path == "/api/scans") or (
            method == "PUT" and path.startswith("/api/folders/")
        )
        return self.upload_bytes if is_upload else SMALL_BYTES

    def _is_own(self, host: str) -> bool:
        match = HOST.fullmatch(host)
        return match is not None and any(own.lower() in (host, match["name"]) for own in (*LOCAL, *self.names))


class Guard:
    """The checks, around the whole application (ASGI)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            exchange = _Exchange(scope, receive, send, self._access.limit(scope))
            response = self._check(scope, exchange)
            # Who has no token must not hold a connection: there are few.
            exchange.drains = response is None or response.status_code not in (401, 403)
            await exchange.answer(response or self._app)

    def _check(self, scope: Scope, exchange: _Exchange) -> Response | None:
        """The answer to a request that the application does not get; None: the application gets it."""
        headers = Headers(scope=scope)
        if reason := self._access.why_refused(headers, scope):
            return error_response(403, reason)
        if not scope["path"].startswith("/"):
            return error_response(400, "the address has no path: start it with /")
        if scope["path"] == "/" and scope["method"] == "GET":
            query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
            if _equal(query.get("token", ""), self._access.token):
                return self._exchange_token(headers)
            if "token" in query and self._access.admits(headers):  # an old token, and the cookie of the right one
                return RedirectResponse("/", 303)
        if not self._access.admits(headers):
            return _token_page(scope) if scope["path"] == "/" else error_response(401, MISSING)
        if exchange.length > exchange.limit:
            return error_response(413, too_large(exchange.limit))
        return None

    def _exchange_token(self, headers: Headers) -> Response:
        """Set the cookie, and go to the address without the token.

        If another site began the request, the browser sends a strict cookie neither with it nor after a redirection.
        Then the answer is a page that opens the address itself.
        """
        response: Response = RedirectResponse("/", 303)
        if headers.get("sec-fetch-site", "none") not in OWN_SITES:
            response = Response(status_code=200, headers={"Refresh": "0; url=/"})
        name, value = self._access.cookie
        response.set_cookie(name, value, path="/", httponly=True, samesite="strict")
        return response


MISSING = (
    "the token is missing or wrong: send the header Authorization: Bearer TOKEN, or open the address that gliaflow "
    "console printed"
)


FAULT = "the console could not answer: its log names the place of the fault"
ENDING = "the console is ending: look for the scan in the list after it has started again"


def error_response(status: int, text: str) -> JSONResponse:
    """An error as the API gives it."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": visible(text)}, status, headers)


def too_large(limit: int) -> str:
    """The text of 413."""
    return (
        f"the body is over the limit of {limit / 2**20:.6g} MiB: send a smaller file, or raise "
        "GLIAFLOW_CONSOLE_UPLOAD_MIB (uploads only)"
    )


def _token_page(scope: Scope) -> Response:
    """What a browser without the token gets. If the address has a wrong one, the page says so."""
    headers = {"WWW-Authenticate": "Bearer", "Content-Security-Policy": TOKEN_PAGE_POLICY}
    page = TOKEN_PAGE.read_bytes()
    if b"token=" in scope["query_string"]:
        page = page.replace(b'id="wrong" hidden', b'id="wrong"')
    return HTMLResponse(page, 401, headers)


def _equal(given: str, right: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())


class _Exchange:
    """A request and its answer: counts the body, and completes the answer's headers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        headers = Headers(scope=scope)
        self.limit = limit
        self.length = int(headers.get("content-length", "0"))
        self._scope, self._receive, self._send = scope, receive, send
        self.drains = True  # reads on after an early answer
        self._more = self.length > 0 or "transfer-encoding" in headers  # the client still sends its body
        self._received = 0
        self._started = False

    async def answer(self, app: ASGIApp) -> None:
        """Let ``app`` answer. An error that it does not handle is logged by its type and place, without its text.

        The server cancels requests when it ends. Work of theirs in a thread may still be done.
        """
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:
            if not self._started:
                self._more = False  # there is no time to read the rest
                await error_response(503, ENDING)(self._scope, self.receive, self.send)
        except Exception as error:
            log.error("a request failed", method=self._scope["method"], error=where(error))
            if not self._started:
                await error_response(500, FAULT)(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        """The next part of the body, or the news that the client has left.

        Raises
        ------
        HTTPException: the body is over the limit (413), or its next part does not come (408).
        """
        if not self._more:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), SILENT_S)
        except TimeoutError:
            raise HTTPException(408, f"no bytes of the body came for {SILENT_S:g} s: send it again") from None
        self._more = message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self.limit:
            raise HTTPException(413, too_large(self.limit))
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer. If the client still sends its body, the connection ends with the answer."""
        if message["type"] == "http.response.start":
            self._started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            is_api = self._scope["path"].startswith("/api/")
            headers.setdefault("Cache-Control", "no-store" if is_api or message["status"] != 200 else "no-cache")
            if self._more:
                headers["Connection"] = "close"
        elif self._more and self.drains and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        """Read and drop the rest of the body for DRAIN_S. A client that is cut off may not read the answer."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while (await self._receive()).get("more_body", False):
                    pass
        except TimeoutError:
            pass
