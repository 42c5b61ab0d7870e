"""Run benchmarks.quantization.paper under its short name."""

from benchmarks.quantization.paper import main

if __name__ == "__main__":
    main()
