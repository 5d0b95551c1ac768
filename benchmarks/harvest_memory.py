"""Peak memory of a harvest, for 50,000 and for 500,000 tokens: it must not grow with the number.

    python -m benchmarks.harvest_memory [--layer 1]

The plan is made beforehand (the same for both), and only the harvest itself is measured, as the peak
resident set of its process. Conversations are cut at 2,048 tokens, so that the largest batch, which memory
does depend on, is the same for both.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measuring import save

_MEASURED = """
import resource, sys
sys.argv = ["harvest", *sys.argv[1:]]
from harvest.__main__ import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", type=int, default=1)
    arguments = parser.parse_args()
    peaks = {}
    for tokens in (50_000, 500_000):
        with tempfile.TemporaryDirectory() as folder:
            cache = str(Path(folder) / "cache")
            options = ["--model", "smollm2-135m-instruct", "--layers", str(arguments.layer), "--cache", cache,
                       "--num-tokens", str(tokens), "--device", "cpu", "--set", "harvest.plan_tokens=550000",
                       "--set", "harvest.held_out_rows=1000", "--set", "harvest.max_length=2048",
                       "--set", "harvest.rows_per_shard=16384"]
            subprocess.run([sys.executable, "-m", "harvest", "plan", *options], check=True, stdout=subprocess.DEVNULL)
            run = subprocess.run([sys.executable, "-c", _MEASURED, "run", *options], check=True, text=True,
                                 stdout=subprocess.PIPE)
        match = re.search(r"^peak (\d+)$", run.stdout, re.MULTILINE)
        assert match
        peaks[tokens] = int(match[1]) / 1024
        print(f"{tokens:8,} tokens: peak {peaks[tokens]:,.0f} MiB")
    growth = peaks[500_000] / peaks[50_000]
    print(f"ten times the tokens take {growth:.3f} times the memory")
    save("harvest_memory", {"layer": arguments.layer, "peak_mib": peaks, "ratio": growth})


if __name__ == "__main__":
    main()
