"""The daemon around edged: drop folder, worker, generations, HTTP, metrics."""
