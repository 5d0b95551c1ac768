"""What is claimed about speed and quality, as programs: python -m benchmarks.harvest_speed, ..."""
