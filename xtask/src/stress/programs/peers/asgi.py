"""Serves files with a length and in chunks, and echoes bodies: an ASGI application."""
import os

FILES = os.environ["FILES"]


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kind, _, name = scope["path"][1:].partition("/")
    if kind != "echo":
        with open(os.path.join(FILES, os.path.basename(name)), "rb") as file:
            body = file.read()
    headers = [] if kind == "c" else [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    step = 6000 if kind == "c" else len(body) or 1
    for at in range(0, len(body), step):
        await send({"type": "http.response.body", "body": body[at : at + step], "more_body": True})
    await send({"type": "http.response.body", "body": b""})
