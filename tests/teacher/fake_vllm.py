"""A small HTTP server that speaks the routes of a teacher server, and fails where it is told to."""

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VOCABULARY = 50


def log_prob(position: int, token: int) -> float:
    """Any numbers will do, as long as a wrong position or token shows."""
    return -1.0 - ((7 * position + 3 * token) % VOCABULARY) / 10


def entries_of(ids: list[int], topk: int) -> list[dict | None]:
    """prompt_logprobs as vLLM writes them: the token itself first, then the K best, each once."""
    found = [None]
    for position in range(1, len(ids)):
        best = sorted(range(VOCABULARY), key=lambda token: -log_prob(position, token))[:topk]
        tokens = dict.fromkeys([ids[position], *best])
        found.append({str(t): {"logprob": log_prob(position, t), "rank": 1, "decoded_token": f"<{t}>"} for t in tokens})
    return found


@dataclass
class Teacher:
    """What the server does, and what it saw.

    Args:
        swift: speak `swift deploy`'s /infer/ in place of vLLM's /v1/completions.
        faults: what happens to the next requests, one each: a status, "reset", "silence", "text".
        spoil: changes the answers of a request, a list of (ids, entries), in place.
    """

    swift: bool = False
    faults: list = field(default_factory=list)
    spoil: object = None
    front: tuple[int, ...] = ()
    bodies: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    url: str = ""


def make_handler(teacher: Teacher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            models = [{"id": name, "max_model_len": 64} for name in ("teacher", "lora")]
            self.reply(200, {"data": models})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            route = "/infer/" if teacher.swift else "/v1/completions"
            if self.path != route:
                self.reply(404, {"detail": "Not Found"})
            elif body.get("infer_requests") == []:
                self.reply(200, [])
            else:
                teacher.bodies.append(body)
                teacher.headers.append(dict(self.headers))
                self.answer_or_fail(body)

        def answer_or_fail(self, body):
            if teacher.faults and (fault := teacher.faults.pop(0)):
                self.fail(fault)
            else:
                self.reply(200, self.answer(body))

        def fail(self, fault):
            if fault == "reset":
                # Linger 0: the connection is reset, not closed.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif fault == "silence":
                time.sleep(1.5)
            elif fault == "text":
                self.reply(200, "<html>")
            else:
                self.reply(fault, {"error": {"message": f"fault {fault}"}})

        def answer(self, body):
            if teacher.swift:
                sent = [request["messages"][0]["content"]["token_ids"] for request in body["infer_requests"]]
                topk = body["request_config"]["prompt_logprobs"]
            else:
                sent, topk = body["prompt"], body["prompt_logprobs"]
            sent = [[*teacher.front, *ids] for ids in sent]
            answers = [(ids, entries_of(ids, topk)) for ids in sent]
            if teacher.spoil and sent != [[2, 1, 3]]:
                teacher.spoil(answers)
            choices = [
                {"index": n, "prompt_token_ids": ids, "prompt_logprobs": entries}
                for n, (ids, entries) in enumerate(answers)
            ]
            return choices if teacher.swift else {"choices": choices[::-1]}

        def reply(self, status: int, body):
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    return Handler


@contextmanager
def serve(**settings):
    """A running server; yields its Teacher with the URL."""
    teacher = Teacher(**settings)
    with ThreadingHTTPServer(("127.0.0.1", 0), make_handler(teacher)) as server:
        server.handle_error = lambda *args: None
        teacher.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield teacher
        server.shutdown()
