"""Checks the protos with buf: lint, and no break against the newest release tag.

buf gets a descriptor image, because what the protos import comes from installed Python packages.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = str(Path(sys.executable).parent / "buf")


def main() -> int:
    """Return 0 when buf finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        image = make_image(ROOT, Path(folder) / "image.binpb")
        lint = subprocess.run([BUF, "lint", str(image), "--config", "buf.yaml"], cwd=ROOT, timeout=120, check=False)
        breaking = breaks(image, Path(folder))
    return lint.returncode or breaking


def breaks(image: Path, folder: Path) -> int:
    """Compare with the newest release tag; before the first release everything may change."""
    tags = git("tag", "--list", "v*", "--sort=-version:refname").split()
    if not tags:
        print("buf breaking: no release yet, everything may change")
        return 0
    released = folder / "released"
    git("worktree", "add", "--detach", str(released), tags[0])
    try:
        against = make_image(released, folder / "released.binpb")
    finally:
        git("worktree", "remove", "--force", str(released))
    command = [BUF, "breaking", str(image), "--against", str(against), "--config", "buf.yaml"]
    return subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode


def make_image(tree: Path, image: Path) -> Path:
    """Write the descriptor image of a tree's protos and return its path."""
    subprocess.run(
        [sys.executable, str(tree / "tools" / "stubs.py"), "--image", str(image)], cwd=tree, timeout=120, check=True
    )
    return image


def git(*arguments: str) -> str:
    """Run git in the project and return what it prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
