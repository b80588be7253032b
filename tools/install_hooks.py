"""Let git merge notebooks cell by cell in this clone: what nbdev_install_hooks is for, and nothing outside the clone.

nbdev's own command also writes into ~/.jupyter, replaces a post-merge hook, and names its programs as if the environment were
always active; where it is not, git keeps one side of a notebook without a mark. `.gitattributes` is in the repository.
"""
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*words: str, root: Path) -> str:  # what it printed; empty where it failed
    "Ask git about a folder."
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return ""


def merge_command(program: Path) -> str:
    "Write git's merge driver: nbdev's, or git's own where the environment is gone."
    nbdev = shlex.quote(str(program))
    return f"if [ -x {nbdev} ]; then {nbdev} %O %A %B %P; else git merge-file -L ours -L base -L theirs %A %O %B; fi"


def install_hooks(root: Path = ROOT, *, program: Path = Path(sys.executable).parent / "nbdev_merge") -> str:  # what was done
    "Set the merge driver of notebooks in the configuration of this clone; do nothing where the folder is no clone."
    top = git("rev-parse", "--show-toplevel", root=root)
    if not top or Path(top).resolve() != root.resolve():  # an unpacked archive, perhaps within another repository
        return f"{root} is not a clone: no git hooks are installed."
    git("config", "--local", "merge.nbdev-merge.name", "resolve conflicts in notebooks with nbdev_fix", root=root)
    git("config", "--local", "merge.nbdev-merge.driver", merge_command(program), root=root)
    return "git merges notebooks of this clone with nbdev_merge."


if __name__ == "__main__":
    print(install_hooks())
