"""What is measured, and how: each study is a module or a package of its own, run as `python -m benchmarks.NAME`."""
