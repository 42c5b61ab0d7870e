"""Run benchmarks.quantization.activations under its short name."""

from benchmarks.quantization.activations import main

if __name__ == "__main__":
    main()
