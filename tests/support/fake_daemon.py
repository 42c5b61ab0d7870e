"""Answers on a UNIX socket as the daemon does, from a script: what commands do with answers is tested without torch."""

import json
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler


class Script:
    """Answers by method and path; the last of several is repeated forever."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self.bodies = []

    def answer(self, request, *answers, status=200):
        """Answer `request`, such as "GET /edged/v1/status", with these one after another."""
        self.answers[request] = [(status, answer) for answer in answers]

    def next(self, request):
        self.asked.append(request)
        answers = self.answers.get(request) or self.answers.get(request.partition("?")[0])
        if not answers:
            return 404, {"error": f"not scripted: {request}", "code": "usage"}
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return status, answer() if callable(answer) else answer


@contextmanager
def fake_daemon(path):
    """Serve a Script on the UNIX socket `path`."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def address_string(self):
            return "local"

        def log_message(self, *_):
            pass

        def do_GET(self):
            status, answer = script.next(f"{self.command} {self.path}")
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            script.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield script
        finally:
            server.shutdown()
            thread.join()
