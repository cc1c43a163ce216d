"""Write requirements-dev.lock: every package of development, pinned, with hashes, naming no registry."""

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-dev.lock"
HEADER = """\
# Made by `make lock` from pyproject.toml. Every package of development, with the hashes of its files.
"""


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    with tempfile.TemporaryDirectory() as scratch:
        tools, source, output = Path(scratch, "venv"), Path(scratch, "in"), Path(scratch, "out")
        venv.create(tools, with_pip=True)
        python = str(tools / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "pip-tools"], check=True)
        source.write_text("\n".join(wanted) + "\n")
        options = [
            "--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header",
            "--no-annotate", "--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links",
            "--no-emit-options",
        ]  # fmt: skip
        command = [python, "-m", "piptools", "compile", *options, "--output-file", str(output), str(source)]
        subprocess.run([*command, *sys.argv[1:]], check=True)
        LOCK.write_text(HEADER + output.read_text())


if __name__ == "__main__":
    main()
