"""The client of a maas cluster: stubs, names, errors, the client itself and the `maas` command."""
