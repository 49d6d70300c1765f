"""The `maas` command. What a command needs is imported when it runs, so that help is instant."""


def main() -> None:
    """Be the `maas` command."""
    from maas.cli.app import app

    app()
