"""`python -m deltapack` is the command `deltapack`."""

from deltapack.cli.main import main

if __name__ == "__main__":
    main()
