"""python -m ddbench."""

from ddbench.cli import main

if __name__ == "__main__":
    main()
