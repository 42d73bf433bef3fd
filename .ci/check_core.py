"""The light core, in the environment that runs this: small, quick to import, working without PyTorch.

python .ci/check_core.py RECORDING    # the video that the README's first command has left
"""

import importlib.util
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

MAX_SIZE_MB = 400
MAX_IMPORT_S = 0.3
RUNS = 7
TOOLS = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}


def installed_mb() -> float:
    """Size of the core and all that it needs; what a new environment has anyway does not count."""
    folder = Path(sysconfig.get_path("purelib"))
    files = (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in TOOLS)
    return sum(path.stat().st_size for path in files) / 1e6


def import_s() -> float:
    """Seconds that `import handmesh` adds to an interpreter's start, the median of some runs."""

    def run(code: str) -> float:
        before = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=sys.prefix)
        return time.perf_counter() - before

    return statistics.median(run("import handmesh") - run("pass") for _ in range(RUNS))


def main(recording: Path) -> None:
    """Measure, print, and stop at the first thing that is not as promised."""
    size_mb, seconds = installed_mb(), import_s()
    print(f"core: {size_mb:.0f} MB installed, import handmesh {seconds:.3f} s")
    assert size_mb < MAX_SIZE_MB, f"the core must stay below {MAX_SIZE_MB} MB"
    assert seconds < MAX_IMPORT_S, f"import handmesh must take less than {MAX_IMPORT_S} s"
    assert importlib.util.find_spec("torch") is None, "the core must not install PyTorch"

    from handmesh import HandMeshEstimator
    from handmesh.video import open_source, read_picture

    with open_source(recording) as source:
        print(f"{recording}: {sum(1 for _ in source)} frames")
    estimator = HandMeshEstimator.from_pretrained()
    pictures = sorted(Path("demos").glob("sample_*.jpg"))
    found = [len(estimator(read_picture(picture))) for picture in pictures]
    print(f"hands in the sample pictures: {found}")
    assert sum(found) > 0, "no hand found in any sample picture"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
