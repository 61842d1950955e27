"""
Write requirements.lock: every package of every extra, pinned, with hashes, for all platforms.

Two things that `uv pip compile` alone cannot give: the lock accepts the CPU build of torch beside the builds
of the package index, and leaves out the CUDA libraries, which `make setup` adds where the torch build asks
for them. `held_back.txt` says what must not be newer. What is locked stays as it is unless `--upgrade` or
`--upgrade-package NAME` is given.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
HEADER = """\
# Every package of the book, pinned, with hashes. Written by `make lock` from pyproject.toml: do not edit.
# torch carries the hash of its CPU build too; CUDA libraries are not locked (see Makefile, `setup`).
"""
CUDA = re.compile(r"^(nvidia|cuda|triton)\b")


def sections(text: str) -> dict[str, str]:
    """Split a compiled requirements file into one text per `name==version ; marker`."""
    parts = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    return {part.split(" \\")[0].strip(): part for part in parts}


def hashes(section: str) -> list[str]:
    """The hashes of one section, in order."""
    return re.findall(r"sha256:[0-9a-f]{64}", section)


def compile_with_uv(arguments: list[str], given: str | None = None, *, find_links: bool) -> str:
    """Run `uv pip compile`; without *find_links* it sees the package index only."""
    environment = dict(os.environ)
    if not find_links:
        environment.pop("UV_FIND_LINKS", None)
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--no-header", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input=given, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def add_cpu_build(section: str, name: str, old: str) -> str:
    """Add the hashes of the CPU build of torch to the *section* of the same version."""
    in_reach = sections(compile_with_uv(["-"], name, find_links=True))
    # No CPU build in reach: keep the hashes that the lock had.
    extra = in_reach.get(f"{name}+cpu") or sections(old).get(name, "")
    merged = sorted({*hashes(section), *hashes(extra)})
    comments = [line for line in section.splitlines() if line.lstrip().startswith("#")]
    lines = [f"{name} \\", " \\\n".join(f"    --hash={value}" for value in merged), *comments]
    return "\n".join(lines) + "\n"


def main() -> None:
    old = LOCK.read_text() if LOCK.exists() else ""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "requirements.txt"
        target.write_text(old)  # uv prefers the versions that it finds in its output file
        wanted = ["pyproject.toml", "--all-extras", "--universal", "--python-version", "3.11"]
        wanted += ["--constraints", "scripts/held_back.txt"]
        compile_with_uv([*wanted, "--output-file", str(target), *sys.argv[1:]], find_links=False)
        found = sections(target.read_text())
    kept = {name: text for name, text in found.items() if not CUDA.match(name)}
    torch = next(name for name in kept if name.startswith("torch=="))
    kept[torch] = add_cpu_build(kept[torch], torch, old)
    LOCK.write_text(HEADER + "".join(kept.values()))
    print(f"{LOCK.name}: {len(kept)} packages")


if __name__ == "__main__":
    main()
