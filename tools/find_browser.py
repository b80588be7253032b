"""Find a Chromium for the browser test; with --install get one (apt where allowed, else Playwright's own)."""
import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    "Give the path of a Chromium: $SNAKECLS_CHROMIUM, one on the PATH, or Playwright's own."
    if given := os.environ.get("SNAKECLS_CHROMIUM"):
        return given
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
        return path if os.path.exists(path) else None
    except Exception:  # noqa: BLE001  (no Playwright, or one without a browser: there is none to find)
        return None


def install_browser() -> None:
    "Try apt as root, then Playwright's download; what fails is told, and the next is tried."
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"])
        if subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"], stdout=subprocess.DEVNULL).returncode == 0:
            return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"])


if __name__ == "__main__":
    path = find_browser()
    if path is None and "--install" in sys.argv:
        install_browser()
        path = find_browser()
    print(f"Browser for the tests: {path or 'none found; the browser tests will be skipped'}")
