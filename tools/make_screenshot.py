"""Write nbs/images/app.png, the picture in the README: the app of a bundle, in the browser that the tests use, with an answer.

    python tools/make_screenshot.py snakecls-demo/runs/RUN/best PHOTO
"""
import io
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from find_browser import find_browser
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT, MAX_BYTES, PORT = 760, 620, 60_000, 7997


def take(url: str, photo: Path) -> bytes:  # PNG
    "Drop a photo into the app, and photograph the page."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(url)
        page.wait_for_selector("#result h2")
        page.set_input_files("#photo input[type=file]", str(photo))
        page.wait_for_selector(".sc-row", timeout=30_000)
        page.wait_for_timeout(800)  # bars grow
        picture = page.screenshot(full_page=True)
        browser.close()
    return picture


def shrink(picture: bytes) -> bytes:
    "Keep the upper part, in few colours, so that it stays a small file."
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, 1000)))
    for colours in (128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours).save(out, "PNG", optimize=True)
        if out.tell() < MAX_BYTES:
            break
    return out.getvalue()


def main(bundle: str, photo: str) -> None:
    "Start the app, take the picture, end the app."
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {"SNAKECLS_BUNDLE": str(Path(bundle).resolve()), "PORT": str(PORT)}
        app = subprocess.Popen([sys.executable, str(ROOT / "app.py")], cwd=empty, env=environment)
        url = f"http://127.0.0.1:{PORT}/"
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(url, timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.2)
            (ROOT / "nbs" / "images" / "app.png").write_bytes(shrink(take(url, Path(photo).resolve())))
        finally:
            app.terminate()
            app.wait(20)


if __name__ == "__main__":
    main(*sys.argv[1:])
