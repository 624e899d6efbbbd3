"""A headless Chromium for tests, driven over chromedriver's WebDriver protocol by urllib alone."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Escape": "\ue00c", "Tab": "\ue004", "Left": "\ue012", "Right": "\ue014"}
KEYS |= {"Down": "\ue015", "Enter": "\ue007"}


class Browser:
    """One window. Every method is one or two requests to the driver."""

    def __init__(self, port, profile, flags=()):
        self._base = f"http://127.0.0.1:{port}"
        options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={profile}", *flags]}
        logging = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logging}
        found = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/session/{found['sessionId']}"

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]

    def command(self, name, **parameters):
        """A command of the browser's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url):
        self._send("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        return self._send("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self._send("POST", f"/element/{self.find(selector)}/click", {})

    def text(self, selector):
        """The text that can be seen."""
        return self._send("GET", f"/element/{self.find(selector)}/text")

    def press(self, *keys):
        """Keys to whatever has the focus."""
        pressed = [KEYS.get(key, key) for key in keys]
        actions = [{"type": kind, "value": k} for k in pressed for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keys", "actions": actions}
        self._send("POST", "/actions", {"actions": [source]})

    def focused(self):
        """The id of what has the focus."""
        return self.run("return document.activeElement.id")

    def log(self, kind):
        return self._send("POST", "/se/log", {"type": kind})

    def size(self, width, height, scheme="light"):
        """A screen of this size, for one who likes this scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def close(self):
        self._send("DELETE", "")


@contextlib.contextmanager
def chromium(folder, flags=()):
    """A browser with an empty profile in `folder`, gone after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [DRIVER, f"--port={port}", "--silent"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            browser = Browser(port, folder / "profile", flags)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
