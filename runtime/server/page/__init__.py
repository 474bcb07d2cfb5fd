"""`GET /`: a page for people, on which they watch a text grow token by token, and change its way.

It asks no host but its own server, and carries all that it needs: its Content-Security-Policy names its script and its
style by their hashes.
"""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from runtime.server.inside import most_tokens
from runtime.server.page.document import document, policy
from runtime.server.service import Service, service_of

CHOICES = 5  # likeliest tokens that are shown of each position
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": policy(),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def page(request: Request) -> Response:
    """Show a page on which people complete prompts."""
    service = service_of(request)
    return HTMLResponse(document(service.name, limits(service)), headers=HEADERS)


def limits(service: Service) -> dict[str, int]:
    """What the page may ask of this server."""
    settings, context = service.settings, service.model.prompting.context
    return {
        "context": context,
        "maxTokens": min(settings.max_tokens or context, context - 1),
        "choices": min(settings.max_logprobs, CHOICES),
        "inside": most_tokens(service.model),
    }
