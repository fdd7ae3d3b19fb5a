"""A lock file: what pip may install in an image, each file by its hash, whatever the model asks for."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from mlflow_catdog.deployments.errors import ModelFailed

_HELD_TO_LOCK = "--require-hashes\n--only-binary :all:\n"  # what an sdist is built with has no hashes
_NO_REQUIREMENT = re.compile(r"|-c constraints\.txt|--(extra-)?index-url\b.*")


def write_requirements(model: Path, folder: Path, lock_file: str) -> None:
    """Write what pip is to install of a model's requirements, and the lock file, which is empty if there is none.

    Args:
        model: The model's folder.
        folder: To make; gets `requirements.txt`, `lock.txt` and, if the model has it, `constraints.txt`.
        lock_file: Has all that pip may install, with hashes; "" for none.

    Raises:
        ModelFailed: A line of the model's would get past the lock file.
    """
    folder.mkdir()
    (folder / "requirements.txt").touch()
    for name in ("requirements.txt", "constraints.txt"):
        if (model / name).is_file():
            text = (model / name).read_text()
            (folder / name).write_text(_without_sources(name, text) if lock_file else text)
    (folder / "lock.txt").write_text(f"{_HELD_TO_LOCK}{Path(lock_file).read_text()}" if lock_file else "")


def _without_sources(name: str, text: str) -> str:
    """A model's requirements as names and versions: a URL, or a hash of its own, would get past the lock file."""
    kept = []
    for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()):
        if _NO_REQUIREMENT.fullmatch(line):
            kept += [line] if line.startswith("-c") else []
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            requirement = None
        if requirement is None or requirement.url:
            raise ModelFailed(
                f"the model's {name} has the line {line!r}, which lock_file cannot hold pip to: expected a name and "
                "versions, such as pillow==12.0.0; log the model without it, or deploy it with an empty lock_file"
            )
        kept.append(str(requirement))
    return "\n".join(kept) + "\n"


def how_to_lock(version: str, python_version: str, runtime: Path, lock_file: str) -> str:
    """The commands that add a model's packages to a lock file.

    Args:
        version: The model's URI.
        python_version: The model's, X.Y.Z.
        runtime: The server's requirements.
        lock_file: The lock file.
    """
    return (
        f"pip may install nothing but what {lock_file} has, with its hashes. To add what pip names above:\n"
        f"  mlflow artifacts download -u {version}/requirements.txt -d .\n"
        f"  uv pip compile --universal --python-version {python_version.rpartition('.')[0]} --only-binary :all: "
        f"--generate-hashes requirements.txt {runtime} -o {lock_file}"
    )
