"""Serves files with a length and in chunks, and echoes bodies: aiohttp."""
import os
import sys

from aiohttp import web

FILES, HOST, PORT = sys.argv[1:]


def content(request):
    with open(os.path.join(FILES, os.path.basename(request.match_info["name"])), "rb") as file:
        return file.read()


async def whole(request):
    return web.Response(body=content(request))


async def chunked(request):
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    body = content(request)
    for at in range(0, len(body), 7000):
        await response.write(body[at : at + 7000])
    await response.write_eof()
    return response


async def echo(request):
    return web.Response(body=await request.read())


app = web.Application(client_max_size=1 << 26)
app.add_routes([web.get("/f/{name}", whole), web.get("/c/{name}", chunked), web.post("/echo", echo)])
web.run_app(app, host=HOST, port=int(PORT), access_log=None, print=None)
