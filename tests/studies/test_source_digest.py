"""A result is addressed by the code that made it, the modules it imports included."""

from __future__ import annotations

from pathlib import Path

import expunge
from expunge.methods import METHODS
from expunge.metrics.base import METRICS
from expunge.studies.sources import _add_imports


def files_of(path: str) -> set[str]:
    root = Path(expunge.__file__).parent
    found: dict[Path, None] = {}
    _add_imports(root / path, found)
    return {str(f.relative_to(root)) for f in found}


def test_what_a_method_imports_is_part_of_it() -> None:
    salun = files_of("methods/salun.py")
    assert {"methods/salun.py", "methods/random_labeling.py", "find/importance.py"} <= salun
    assert "methods/scrub.py" not in salun and not any(f.startswith("families") for f in salun)


def test_a_file_of_a_user_is_followed_into_the_package(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from expunge.find.importance import gradient_sum\nimport torch\n")
    found: dict[Path, None] = {}
    _add_imports(mine, found)
    assert mine in found and any(f.name == "importance.py" for f in found)


def test_every_item_has_a_fingerprint() -> None:
    from expunge.studies.sources import source_digest

    # Other tests of the same process may have registered methods of files that are gone by now.
    ours = {name: cls for name, cls in METHODS.items() if cls.__module__.startswith("expunge.")}
    digests = {name: source_digest(cls) for name, cls in ours.items()}
    # Two methods of one file share its fingerprint; the name tells them apart.
    assert len(set(digests.values())) == len({cls.__module__ for cls in ours.values()}) > 60
    assert all(len(source_digest(metric.function)) == 20 for _, metric in METRICS.items())
