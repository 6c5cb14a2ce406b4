"""``python -m mmlens.cli``."""

from mmlens.cli import main

if __name__ == "__main__":
    main()
