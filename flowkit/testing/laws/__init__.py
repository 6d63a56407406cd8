"""The laws, one theme a file. Every module here is imported by `flowkit.testing.registry.all_laws`."""
