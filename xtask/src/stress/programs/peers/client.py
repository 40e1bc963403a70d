"""Asks for files, sends bodies to be echoed, and compares every byte; prints what came of it as JSON.

`requests`, `aiohttp`: HTTP clients; `redis`: values of many sizes are set and got, one by one and pipelined.
"""
import asyncio
import json
import os
import random
import sys
import threading
import time

KIND, FILES, TO, SECONDS, WORKERS = sys.argv[1:]
END = time.monotonic() + float(SECONDS)
LIMIT = 30
NAMES = sorted(os.listdir(FILES))
CONTENTS = {name: open(os.path.join(FILES, name), "rb").read() for name in NAMES}
SUM = {"requests": 0, "bytes": 0, "mismatches": 0, "errors": 0, "stalls": 0, "notes": []}
LOCK = threading.Lock()


def note(text):
    if len(SUM["notes"]) < 10:
        SUM["notes"].append(text)


def compare(name, kind, body):
    with LOCK:
        SUM["requests"] += 1
        SUM["bytes"] += len(body)
        if body != CONTENTS[name]:
            SUM["mismatches"] += 1
            note(f"{name}, {kind}: {len(body)} bytes differ from the file's {len(CONTENTS[name])}")


def failed(name, kind, error, began):
    with LOCK:
        SUM["stalls" if time.monotonic() - began >= LIMIT else "errors"] += 1
        note(f"{name}, {kind}: {type(error).__name__} {error}")


def draw():
    return random.choice(NAMES), random.choice(["f", "c", "echo", "stream"])


def pieces(content):
    for at in range(0, len(content), 9000):
        yield content[at : at + 9000]


def by_requests():
    import requests

    session = requests.Session()
    while time.monotonic() < END:
        name, kind = draw()
        began = time.monotonic()
        try:
            if kind in ("f", "c"):
                answer = session.get(f"{TO}/{kind}/{name}", timeout=LIMIT)
            else:
                content = CONTENTS[name]
                body = content if kind == "echo" or not content else pieces(content)
                answer = session.post(f"{TO}/echo", data=body, timeout=LIMIT)
            answer.raise_for_status()
            compare(name, kind, answer.content)
        except Exception as error:
            failed(name, kind, error, began)


async def by_aiohttp():
    import aiohttp

    async def stream(content):
        for piece in pieces(content):
            yield piece

    async def work(session):
        while time.monotonic() < END:
            name, kind = draw()
            began = time.monotonic()
            try:
                if kind in ("f", "c"):
                    call = session.get(f"{TO}/{kind}/{name}")
                else:
                    content = CONTENTS[name]
                    call = session.post(f"{TO}/echo", data=content if kind == "echo" else stream(content))
                async with call as answer:
                    answer.raise_for_status()
                    compare(name, kind, await answer.read())
            except Exception as error:
                failed(name, kind, error, began)

    timeout = aiohttp.ClientTimeout(total=LIMIT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(work(session) for _ in range(int(WORKERS))))


async def by_redis():
    import redis.asyncio as redis

    host, port = TO.rsplit(":", 1)

    async def work(number):
        client = redis.Redis(host=host, port=int(port), socket_timeout=LIMIT)
        while time.monotonic() < END:
            names = random.choices(NAMES, k=random.choice([1, 1, 1, 8]))
            began = time.monotonic()
            try:
                if len(names) == 1:
                    await client.set(f"{number}", CONTENTS[names[0]])
                    compare(names[0], "get", await client.get(f"{number}"))
                    continue
                pipe = client.pipeline(transaction=False)
                for at, name in enumerate(names):
                    pipe.set(f"{number}-{at}", CONTENTS[name])
                    pipe.get(f"{number}-{at}")
                answers = await pipe.execute()
                for at, name in enumerate(names):
                    compare(name, "pipelined get", answers[2 * at + 1])
            except Exception as error:
                failed(names[0], "redis", error, began)
        await client.aclose()

    await asyncio.gather(*(work(number) for number in range(int(WORKERS))))


if KIND == "requests":
    threads = [threading.Thread(target=by_requests) for _ in range(int(WORKERS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
else:
    asyncio.run(by_aiohttp() if KIND == "aiohttp" else by_redis())
print(json.dumps(SUM))
