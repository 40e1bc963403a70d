"""Serves files with a length and in chunks, and echoes bodies: a WSGI application."""
import os

FILES = os.environ["FILES"]


def app(environ, start_response):
    kind, _, name = environ["PATH_INFO"][1:].partition("/")
    if kind == "echo":
        body = environ["wsgi.input"].read()
    else:
        with open(os.path.join(FILES, os.path.basename(name)), "rb") as file:
            body = file.read()
    if kind == "c":
        start_response("200 OK", [])
        return (body[at : at + 6000] for at in range(0, len(body), 6000))
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]
