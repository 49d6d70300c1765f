"""Durable jobs: a bounded queue, progress, cancel, and heavy steps in subprocesses with limits."""
