"""What every request to the page passes: only this machine's own names, and a policy that keeps the browser here."""

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'"
)


class Policy:
    """ASGI middleware that adds the Content-Security-Policy to every answer."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


class OwnHosts:
    """ASGI middleware that refuses a request for another host than this one.

    Some page elsewhere could let its own name point to this machine once it is open in a browser (DNS rebinding), which
    would then let it read the answers here. An address in numbers is no such name.
    """

    def __init__(self, app: Any, names: Sequence[str]):
        self.app = app
        self.names = {name.lower() for name in names}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and not self.is_own(scope["headers"]):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            told = b"This page is not served under that name: open it by its address, or give names=[\xe2\x80\xa6].\n"
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(told)),
            ]
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": told})
            return
        await self.app(scope, receive, send)

    def is_own(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether there is one Host header, of a name given or an address."""
        given = [value.decode("latin-1") for name, value in headers if name.lower() == b"host"]
        if len(given) != 1:
            return False
        found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d*)?", given[0].strip())
        if found is None:
            return False
        host = found[1].strip("[]").lower()
        return host.removesuffix(".") in self.names or is_address(host)


def is_address(host: str) -> bool:
    """Whether it is an address in numbers."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def own_names(host: str, names: Sequence[str]) -> list[str]:
    """The names under which the page may be asked for: this machine's, where others may ask, and those given."""
    served = ["localhost", host, *names]
    if not is_address(host) or ip_address(host).is_loopback:
        return served
    return [*served, socket.gethostname(), socket.getfqdn()]
