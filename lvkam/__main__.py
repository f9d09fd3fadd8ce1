"""`python -m lvkam`, as `torchrun -m lvkam` has it."""

from lvkam_cli.main import main  # pyright: ignore[reportMissingImports]  # the folder cli/ is installed under this name

if __name__ == "__main__":
    main()
