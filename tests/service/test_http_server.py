import asyncio
import socket
import time
from email.utils import parsedate_to_datetime

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.http_server import make_server


async def hello(_):
    return JSONResponse({"hello": 1}, headers={"X-Other": "kept"})


def test_responses_have_a_date_and_the_server_leaves_when_it_is_told():
    async def main():
        listener = socket.create_server(("127.0.0.1", 0))
        server = make_server(Starlette(routes=[Route("/", hello)]))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            found = [await client.get(target) for target in ("/", "/nowhere")]
        assert not serving.done()
        server.should_exit = True
        await asyncio.wait_for(serving, 30)
        return found

    before = int(time.time())
    good, missing = asyncio.run(main())
    for response in (good, missing):
        [date] = response.headers.get_list("date")
        assert before <= parsedate_to_datetime(date).timestamp() <= time.time()
        assert "server" not in response.headers
    assert (good.status_code, good.json(), good.headers["x-other"]) == (200, {"hello": 1}, "kept")
    assert missing.status_code == 404


def test_a_server_that_is_told_before_it_began_leaves_at_once():
    async def main():
        listener = socket.create_server(("127.0.0.1", 0))
        server = make_server(Starlette())
        server.should_exit = True
        await asyncio.wait_for(server.serve(sockets=[listener]), 30)
        assert server.should_exit
        server.should_exit = False
        assert not server.should_exit

    asyncio.run(main())
