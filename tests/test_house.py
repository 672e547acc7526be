"""Laws of the repository itself: layout, generated files, what the prose promises."""

import dataclasses
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from joulegram.cli import parts
from joulegram.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOTS = PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]


@cache
def make_targets() -> set[str]:
    said = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return set(re.findall(r"^  make ([a-z-]+)", said.stdout, re.M))


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "bench").glob("*.py") if p.stem[0] != "_"),
    ids=lambda p: p.stem,
)
def test_every_bench_can_be_run(path: Path) -> None:
    """`make bench` runs every module that has no _ before its name."""
    assert "\ndef run() -> list[dict[str, Any]]:" in path.read_text()


@pytest.mark.parametrize("root", ROOTS)
def test_no_part_hides_the_others(root: str) -> None:
    """`joulegram` is a namespace: an __init__.py in it would hide every other root."""
    assert not (ROOT / root / "__init__.py").exists()
    assert not (ROOT / root / "joulegram" / "__init__.py").exists()


def test_every_root_is_shipped_and_checked() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert wheel == [f"{root}/joulegram" for root in ROOTS]
    assert set(ROOTS) == set(PROJECT["tool"]["mypy"]["mypy_path"])


def test_stubs_are_what_the_proto_says(tmp_path: Path) -> None:
    """`make stubs` would change nothing."""
    subprocess.run(
        [sys.executable, ROOT / "proto/generate.py", tmp_path],
        check=True,
        capture_output=True,
        timeout=60,
    )
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    committed = {
        path.relative_to(ROOT / "proto"): path.read_text()
        for path in (ROOT / "proto").rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    }
    assert made and made == committed


def test_decisions_are_numbered_without_gaps() -> None:
    names = sorted(path.name for path in (ROOT / "docs/adr").glob("*"))
    assert names and all(re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name) for name in names), names
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        title = (ROOT / "docs/adr" / name).read_text().splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. "), f"{name}: {title}"


def test_architecture_names_what_is_there_and_leaves_nothing_out() -> None:
    """Every file and folder that it names, and every one of the parts' own folders."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for section in text.split("\n## ")[1:]:
        folder = ROOT / section.split()[0]
        words = [word for code in re.findall(r"`([^`\n]+)`", section) for word in code.split()]
        for name in filter(re.compile(r"[\w*.][\w*./-]*(\.[a-z]{2,5}|/)").fullmatch, words):
            below = folder if folder.is_dir() else ROOT
            assert (ROOT / name).exists() or any(below.rglob(name.rstrip("/"))), name
    named = set(re.findall(r"[\w-]+(?:\.py|/)", text))
    for part in ("agent", "collector", "cli"):
        for path in (ROOT / part / "joulegram" / part).iterdir():
            if path.suffix == ".py" or (path / "__init__.py").exists():
                own = f"{path.name}/" if path.is_dir() else path.name
                assert own in named | {"__init__.py", "errors.py"}, path


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/adr/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_prose_points_to_is_there(page: Path) -> None:
    """Links to other files, and files that are named from the root on."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in link or (page.parent / link).exists(), link
    root = r"\b(?:docs|tests|bench|deploy|proto)/[\w./-]*\w\.[a-z]{2,7}\b"
    for name in re.findall(root, text):
        assert (ROOT / name).exists(), name


def test_every_key_of_the_configuration_is_on_some_page() -> None:
    prose = "\n".join(page.read_text() for page in PAGES)
    for table, made in parts.tables().items():
        for key in dataclasses.fields(made):
            assert re.search(rf"\b{key.name}\b", prose), f"{table}.{key.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_the_prose_names_exist(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every `make X` and `joulegram X` in a line of code or in backticks."""
    text = page.read_text()
    code = re.findall(r"`[^`\n]+`", text) + re.findall(r"^```.*?^```", text, re.M | re.S)
    named = {name for piece in code for name in re.findall(r"\bmake ([a-z-]+)", piece)}
    assert named <= make_targets(), named - make_targets()
    main([])
    known = set(re.findall(r"^  joulegram ([a-z]+)", capsys.readouterr().out, re.M))
    named = {
        name
        for piece in code
        for name in re.findall(r"^(?:`|\$ )?(?:\S*/)?joulegram ([a-z]+)", piece, re.M)
    }
    assert known and named <= known, named - known


def test_the_command_line_needs_no_part() -> None:
    """`joulegram --help` imports neither agent, collector, wire, nor anything slow."""
    code = "import sys, joulegram.cli.main as m; m.main([]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"joulegram.agent", "joulegram.collector", "joulegram.v1", "httpx", "rich"}


def test_a_lean_install_can_read_every_table() -> None:
    """The modules that hold configuration tables need nothing beyond Python's own library."""
    code = (
        "import sys; from joulegram.cli import parts; parts.tables(); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {*sys.stdlib_module_names, "joulegram", "__mp_main__"} | {
        name for name in done.stdout.split() if name.startswith("_")
    }
