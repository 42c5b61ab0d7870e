"""Run benchmarks.quantization.orders under its short name."""

from benchmarks.quantization.orders import main

if __name__ == "__main__":
    main()
