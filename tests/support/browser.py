"""A real headless Chromium, driven through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
# WCAG's ratio of an element's text to the nearest background; 21 for an element without text of its own.
CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const luminance = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const background = (element) => {
  const found = parse(getComputedStyle(element).backgroundColor);
  return found[3] === 0 && element.parentElement ? background(element.parentElement) : found;
};
const contrast = (element) => {
  if (![...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) return 21;
  const style = getComputedStyle(element);
  const text = parse(element.closest("svg") ? style.fill : style.color);
  const [low, high] = [luminance(text), luminance(background(element))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
"""
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
# Would run a script, were it not escaped.
EVIL = "<img src=x onerror=alert(1)>'\".pt"
# Chromium reads commands from descriptor 3 and writes answers to 4.
_EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One tab of the browser.

    Attributes:
        complaints: What the console and the policy of a page complained of.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        identity = next(self._ids)
        command = {"id": identity, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        while (message := self._read()).get("id") != identity:
            self._listen(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self._await_load()

    def follow(self, selector: str) -> None:
        """Click a link and wait until the next page is loaded."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self._await_load()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true; it is evaluated whenever the page changes."""
        look = f"() => Boolean({expression})"
        watch = "{subtree: true, childList: true, characterData: true, attributes: true}"
        self.evaluate(
            f"new Promise((done) => {{ const look = {look}; if (look()) return done();"
            " const eye = new MutationObserver(() => { if (look()) { eye.disconnect(); done(); } });"
            f" eye.observe(document, {watch}); }})"
        )

    def choose_file(self, selector: str, path: Path) -> None:
        """Fill an <input type=file>."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def prefer(self, scheme: str) -> None:
        """Emulate the preference for a light or dark page."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self._commands.close()
        self._answers.close()

    def _await_load(self) -> None:
        while (message := self._read()).get("method") != "Page.loadEventFired":
            self._listen(message)

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message

    def _listen(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser with a profile of its own."""
    assert CHROMIUM is not None
    theirs_in, commands = os.pipe()
    answers, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _EXEC,
                str(theirs_in),
                str(theirs_out),
                CHROMIUM,
                *_FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out):
            os.close(end)
        browser = None
        try:
            browser = Browser(commands, answers)
            yield browser
        finally:
            process.kill()
            process.wait()
            if browser is not None:
                browser.close()
