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


# Mathematics of which a part is out of sight and cannot be scrolled to.
LOST = """(() => [...document.querySelectorAll('.math > mjx-container')].filter(math => {
    const box = math.parentElement, [a, b] = [math.getBoundingClientRect(), box.getBoundingClientRect()];
    return a.left < b.left - 1 || (a.right > b.right + 1 && getComputedStyle(box).overflowX === 'hidden');
}).map(math => 'a part is cut off: ' + math.textContent.slice(0, 80)))()"""

# Text paler than WCAG 2 allows: a contrast of 4.5 for text, of 3 for large text. Whatever is folded is unfolded before.
PALE = r"""(() => {
    const rgba = text => {
        const [r, g, b, a = 1] = text.match(/[\d.]+(e-?\d+)?/g).map(Number), unit = text.startsWith('rgb') ? 1 : 255;
        return [r * unit, g * unit, b * unit, a];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
    const light = color => [0.2126, 0.7152, 0.0722].reduce((sum, share, i) => {
        const c = color[i] / 255;
        return sum + share * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    }, 0);
    const skip = new Set(['svg', 'script', 'style', 'noscript', 'mjx-assistive-mml']), found = new Map();
    const speaks = node => node.nodeType === Node.TEXT_NODE && node.textContent.trim();
    const visit = (element, ground, opacity) => {
        const style = getComputedStyle(element), size = parseFloat(style.fontSize);
        if (skip.has(element.localName) || style.display === 'none' || style.visibility === 'hidden') return;
        ground = over(rgba(style.backgroundColor), ground);
        opacity *= style.opacity;
        const math = element.localName === 'mjx-container';
        if (opacity > 0 && (math || [...element.childNodes].some(speaks))) {
            const color = rgba(style.color);
            const [a, b] = [light(over([...color.slice(0, 3), color[3] * opacity], ground)), light(ground)];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const enough = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
            const what = `${element.localName}.${element.className} "${element.textContent.trim().slice(0, 40)}"`;
            if (contrast < enough) found.set(style.color + ground, `contrast ${contrast.toFixed(2)} of ${what}`);
        }
        if (!math) for (const child of element.children) visit(child, ground, opacity);
    };
    visit(document.body, over(rgba(getComputedStyle(document.documentElement).backgroundColor), [255, 255, 255]), 1);
    return [...found.values()];
})()"""

THEME = """(async () => {  // a page may take a moment to notice
    const root = document.documentElement.dataset;
    for (let i = 0; i < 100 && root.theme && root.theme !== '%s'; i++) await new Promise(next => setTimeout(next, 20));
    return root.theme || null;
})()"""

UNFOLD = """(() => {
    document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');
    for (const fold of document.querySelectorAll('details')) fold.open = true;
})()"""


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

    @contextmanager
    def page(self, url: str) -> Iterator[str]:
        """Load a page in a tab of its own, let pictures and mathematics settle, and give the tab's session."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", session)
        self.resize(session, WIDTHS[0])
        self.call("Page.navigate", session, url=url)
        self.wait_for("Page.loadEventFired", session)
        self.evaluate(session, SETTLE)
        yield session
        self.call("Target.closeTarget", targetId=target)

    def faults(self, url: str) -> list[str]:
        """Look at a page on a phone and at a desk, by day and by night, and return what is wrong with it."""
        with self.page(url) as session:
            found = self.evaluate(session, INSPECT)
            self.evaluate(session, UNFOLD)
            for width in WIDTHS:
                self.resize(session, width)
                if overflow := self.evaluate(session, OVERFLOW):
                    found.append(f"at {width} px: {overflow}")
                found += [f"at {width} px: {lost}" for lost in self.evaluate(session, LOST)]
            found += self.evaluate(session, CUT_OFF)
            for scheme in ("light", "dark"):
                if self.prefer(session, scheme) not in (scheme, None):
                    found.append(f"does not turn {scheme}")
                found += [f"{scheme}: {pale}" for pale in self.evaluate(session, PALE)]
        home = re.match(r"https?://[^/]+/", url)[0]
        found += [
            fault for event in self.events if event.get("sessionId") == session and (fault := describe(event, home))
        ]
        return list(dict.fromkeys(found))

    def prefer(self, session: str, scheme: str) -> str | None:
        """Let the reader's machine prefer a light or a dark page; return the theme that a page with themes takes on."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", session, features=features)
        return self.evaluate(session, THEME % scheme)

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
