"""Run benchmarks.quantization.detection under its short name."""

from benchmarks.quantization.detection import main

if __name__ == "__main__":
    main()
