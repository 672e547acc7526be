"""A `libnvidia-ml.so.1` that plays a text file; nvml.c says how the file is written."""

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from tests.servers import need

SOURCE = Path(__file__).with_name("nvml.c")
VARIABLE = "FAKE_NVML"


def build(folder: Path, without: Collection[str] = ()) -> Path:
    """Compile the library into `folder`, and return the folder.

    Args:
        without: functions that it shall not have, as a library of another age.
    """
    compiler = shutil.which("cc") or need("gcc")
    folder.mkdir(parents=True, exist_ok=True)
    argv = [compiler, "-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-pthread"]
    if without:
        script = folder / "without.map"
        script.write_text("{ local: " + " ".join(f"{name};" for name in sorted(without)) + " };\n")
        argv.append(f"-Wl,--version-script={script}")
    argv += ["-Wl,-soname,libnvidia-ml.so.1", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)]
    subprocess.run(argv, check=True, timeout=60)
    return folder


def environment(folder: Path, trace: Path) -> Mapping[str, str]:
    """What a child's environment needs, beyond ours, to see the trace's GPUs."""
    return {"LD_LIBRARY_PATH": str(folder), VARIABLE: str(trace)}


def play(trace: Path, text: str) -> None:
    """Put a trace in place, whole; bytes that are no text as os.fsdecode keeps them."""
    draft = trace.with_suffix(".draft")
    draft.write_bytes(os.fsencode(text))
    draft.rename(trace)
