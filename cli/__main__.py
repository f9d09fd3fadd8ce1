"""`python -m lvkam_cli`, where the command `lvkam` may not be on the path."""

from .main import main

if __name__ == "__main__":
    main()
