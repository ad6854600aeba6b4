"""``python -m skate``: the same as the ``skate`` command."""

from .cli import main

if __name__ == "__main__":
    main()
