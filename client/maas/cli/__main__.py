"""`python -m maas.cli`: the same as `maas`."""

from maas.cli import main

if __name__ == "__main__":
    main()
