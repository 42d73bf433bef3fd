"""``python -m handmesh``: the same as the command ``handmesh``."""

from handmesh.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
