"""``python -m megalit`` is ``megalit``."""

from megalit.cli import main

if __name__ == "__main__":
    main()
