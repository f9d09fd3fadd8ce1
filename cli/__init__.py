"""The command line of lvkam."""
