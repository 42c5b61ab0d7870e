"""Run benchmarks.execution.latency under its short name."""

from benchmarks.execution.latency import main

if __name__ == "__main__":
    main()
