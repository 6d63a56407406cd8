"""Pytest fixtures of the conformance kit."""
