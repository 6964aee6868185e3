"""A real HTTP server that speaks OpenAI's protocol, and behaves badly in every way that servers do."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from megalit.synthesis.engines import OpenAI
from megalit.synthesis.requests import Completion, Request, Sampling, ask

Answer = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's ``answers`` say, the last one for all that follow."""

    server: "Server"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.mutex:
            number = len(self.server.bodies)
            self.server.bodies.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            self.server.answers[min(number, len(self.server.answers) - 1)](self, number)
        finally:
            with self.server.mutex:
                self.server.busy -= 1

    def send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = [good]
        self.bodies: list[dict[str, Any]] = []
        self.mutex = threading.Lock()
        self.busy = self.busiest = 0

    def handle_error(self, *_: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def good(handler: Handler, number: int) -> None:
    chat = {"message": {"role": "assistant", "content": f"answer {number}"}}
    choice = {"index": 0, "finish_reason": "length", "text": f"answer {number}", **chat}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    handler.send(200, json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode())


def status(code: int) -> Answer:
    return lambda handler, number: handler.send(code, b'{"error": {"message": "so it is"}}')


def frozen(handler: Handler, number: int) -> None:
    time.sleep(3)


def hangs_up(handler: Handler, number: int) -> None:
    handler.connection.close()


def body(data: bytes) -> Answer:
    return lambda handler, number: handler.send(200, data)


def says(*texts: str, finish: str = "stop", **beside: str) -> list[Answer]:
    """Answers of these texts, one by one."""

    def one(text: str) -> Answer:
        choice = {"index": 0, "finish_reason": finish, "text": text, "message": {"content": text, **beside}}
        return body(json.dumps({"id": "x", "choices": [choice]}).encode())

    return [one(text) for text in texts]


def complete(server: Server, request: Request | None = None, count: int = 1, **settings: Any) -> list[Completion]:
    sampling = settings.pop("sampling", Sampling())

    async def run() -> list[Completion]:
        async with OpenAI("model", url=server.url, **settings) as engine:
            asked = request if request is not None else ask("say it", "step")
            return await asyncio.gather(*(engine.complete(asked, sampling, seed) for seed in range(count)))

    return asyncio.run(run())
