"""docs/security.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "A": "tests/collector/test_security_agents.py",
    "R": "tests/collector/test_security_readers.py",
    "C": "tests/agent/test_credentials.py",
    "E": "tests/e2e/test_tls.py",
    "H": "tests/e2e/test_hostile.py",
    "I": "tests/agent/test_identity.py",
}


def test_every_threat_has_a_test_that_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    table = text.partition("## Threats")[2].partition("What does not stand")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for threat, _, tests in rows:
        named = re.findall(r"(?:([ARCEHI]) |`(tests/\S+\.py)` ?)(?:`(test_\w+)`)?", tests)
        assert named, threat
        for short, path, test in named:
            source = (ROOT / (path or FILES[short])).read_text()
            assert not test or f"def {test}(" in source, (threat, test)
