"""`python -m transferkit` and the `transferkit` command."""

from transferkit.cli import main

if __name__ == "__main__":
    main()
