"""Make the Python stubs of every .proto: `proto/generate.py [FOLDER]`, default beside them."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
MYPY = ("mypy", "mypy_grpc")


def generate(folder: Path) -> None:
    """Write the stubs under `folder`. Raises SystemExit with protoc's status."""
    beside = Path(sys.executable).parent  # the virtual environment need not be on PATH
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            *(f"--plugin=protoc-gen-{name}={beside / f'protoc-gen-{name}'}" for name in MYPY),
            *(f"--{name}_out={folder}" for name in ("python", "grpc_python", *MYPY)),
            *(str(path) for path in sorted(ROOT.rglob("*.proto"))),
        ]
    )
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
