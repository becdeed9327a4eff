"""Read a built page as a browser shows it: headless Chromium, spoken to over its DevTools protocol."""

import functools
import http.server
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
WIDTHS = (390, 1280)  # a phone, a desk

SETTLE = """(async () => {
    for (const image of document.images) image.loading = 'eager';
    await Promise.allSettled([...document.images].map(image => image.decode()));
    if (window.MathJax) await window.MathJax.startup.promise;
})()"""

INSPECT = r"""(() => {
    const raw = /\\[(\[]|\$\$|\$[^\s$][^$]*\$|\\(tag|eqref|begin)\{/;
    const found = [], skip = 'pre, code, script, style, noscript, textarea, mjx-container, svg';
    for (const image of document.images)
        if (!image.naturalWidth) found.push('broken image ' + image.src.slice(0, 200));
    for (const error of document.querySelectorAll('mjx-merror, [data-mjx-error]'))
        found.push('math error in ' + (error.closest('mjx-container') || error).textContent.slice(0, 200));
    for (const math of document.querySelectorAll('mjx-container'))
        if (math.textContent.includes('???')) found.push('reference to an equation that is not on the page');
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent, parent = walker.currentNode.parentElement;
        if (!parent.closest(skip) && raw.test(text))
            found.push('unrendered math ' + text.trim().slice(0, 200));
    }
    return found;
})()"""

OVERFLOW = """(() => {
    const page = document.documentElement, wide = page.scrollWidth - page.clientWidth;
    if (wide <= 0) return null;
    const sticksOut = element => element.getBoundingClientRect().right > page.clientWidth + 1;
    const culprit = [...document.querySelectorAll('body *')].find(sticksOut);
    return `${wide} px too wide: ` + (culprit ? culprit.outerHTML.slice(0, 120) : '');
})()"""

# An equation whose number is out of sight. (On a phone some must scroll.)
CUT_OFF = """(() => [...document.querySelectorAll('mjx-container[display="true"]')]
    .filter(math => Math.max(math.scrollWidth, math.parentElement.scrollWidth) > math.parentElement.clientWidth + 1)
    .map(math => 'an equation that is too wide: ' + math.textContent.slice(0, 80)))()"""


def find() -> str | None:
    """Return the path of a Chromium or Chrome, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone, and give its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """A running Chromium; ``faults(url)`` tells what a reader of that page would find wrong."""

    def __init__(self, executable: str):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        lines = iter(self.process.stderr.readline, "")
        address = next((m[1] for line in lines if (m := re.search(r"DevTools listening on (ws://\S+)", line))), None)
        if address is None:
            raise RuntimeError(f"{executable} ended with code {self.process.wait()} before it listened")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # so that its pipe never fills
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.count = itertools.count(1)
        self.events: list[dict] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=30)
        self.profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters) -> dict:
        """Send one command and return its answer; events that arrive meanwhile are kept."""
        number = next(self.count)
        message = {"id": number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def wait_for(self, event: str, session: str) -> None:
        while not any((e["method"], e.get("sessionId")) == (event, session) for e in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def evaluate(self, session: str, script: str):
        answer = self.call("Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def faults(self, url: str) -> list[str]:
        """Load a page, let pictures and mathematics settle, and return what is wrong with it."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        found = []
        self.resize(session, WIDTHS[0])
        self.call("Page.navigate", session, url=url)
        self.wait_for("Page.loadEventFired", session)
        self.evaluate(session, SETTLE)
        found += self.evaluate(session, INSPECT)
        for width in WIDTHS:
            self.resize(session, width)
            if overflow := self.evaluate(session, OVERFLOW):
                found.append(f"at {width} px: {overflow}")
        found += self.evaluate(session, CUT_OFF)
        self.call("Target.closeTarget", targetId=target)
        home = re.match(r"https?://[^/]+/", url)[0]
        found += [
            fault for event in self.events if event.get("sessionId") == session and (fault := describe(event, home))
        ]
        return list(dict.fromkeys(found))

    def resize(self, session: str, width: int) -> None:
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", session, **metrics)


def describe(event: dict, home: str) -> str | None:
    """Return a sentence if an event of the browser tells of something wrong."""
    it = event.get("params", {})
    match event["method"]:
        case "Runtime.exceptionThrown":
            details = it["exceptionDetails"]
            return "uncaught " + details.get("exception", {}).get("description", details["text"])[:300]
        case "Runtime.consoleAPICalled" if it["type"] in ("error", "warning", "assert"):
            words = " ".join(str(a.get("value", a.get("description", ""))) for a in it["args"])
            return f"console {it['type']}: {words[:300]}"
        case "Log.entryAdded" if it["entry"]["level"] in ("error", "warning"):
            return f"log {it['entry']['level']}: {it['entry']['text'][:300]} {it['entry'].get('url', '')}"
        case "Network.requestWillBeSent" if not it["request"]["url"].startswith((home, "data:", "blob:", "about:")):
            return f"request off the machine: {it['request']['url'][:200]}"
        case "Network.responseReceived" if it["response"]["status"] >= 400:
            return f"{it['response']['status']} for {it['response']['url'][:200]}"
    return None
