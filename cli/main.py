"""Entry point, to come."""


def main() -> None:
    """Run."""
