"""Packaging from settings.ini, without pkg_resources (setuptools 84 has none)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def lines(key: str) -> list[str]:
    "The non-empty lines of a key that holds a list."
    return [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]


# the search of a sweep, its machines, processes for one run, maps of where a transformer looked, libraries that a run is told to
EXTRAS = ("sweep", "ray", "distributed", "explain", "mlflow", "tensorboard", "trackio")
# each is tested against the real library
tests = lines("test_requirements") + [line for name in EXTRAS if name != "ray" for line in lines(f"{name}_requirements")]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12)],
    ],
    packages=find_packages(include=["snakecls", "snakecls.*"]),
    package_data={"snakecls": ["web/*.*", "web/*/*.*"]},  # templates, styles and scripts of pages
    python_requires=f">={cfg['min_python']}",
    install_requires=lines("requirements"),
    extras_require={
        "dev": lines("dev_requirements") + tests + lines("ray_requirements"),  # Ray is large: where it is missing, its tests are skipped
        "test": tests,
        "lite": lines("lite_requirements"),  # weights of two larger networks
        "openvino": lines("openvino_requirements"),  # one engine more
        **{name: lines(f"{name}_requirements") for name in EXTRAS},
    },
    entry_points={"console_scripts": lines("console_scripts"), "nbdev": ["snakecls=snakecls._modidx:d"]},
    zip_safe=False,
)
