"""Benchmarks as people have them on disk: pictures, captions, labels, class names and templates."""
