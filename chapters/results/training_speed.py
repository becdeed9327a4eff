"""The speed of the training step, as tests/bench_training.py measures it, kept for the tables of README and chapter 07.

    OMP_NUM_THREADS=1 python chapters/results/training_speed.py [step] [others] [compiled] [two]

measures these parts again (all), and writes the medians of their times, and of their ratios, into training_speed.json
beside this file. About 10 minutes on an idle machine.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.append(str(Path(__file__).parents[2] / "tests"))
import bench_training

OUT = Path(__file__).with_suffix(".json")

if __name__ == "__main__":
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    parts = json.loads(OUT.read_text())["parts"] if OUT.exists() else {}
    for name, took in bench_training.measure(sys.argv[1:]):
        found = bench_training.rows(name, took)
        ratios = [{"what": what, "ratio": round(value, 3), "target": target} for what, value, target in found]
        milliseconds = {key: round(1e3 * median(each), 1) for key, each in took.items()}
        parts[name] = {"load": round(os.getloadavg()[0], 1), "milliseconds": milliseconds, "ratios": ratios}
        print(name, json.dumps(parts[name], indent=1, ensure_ascii=False), flush=True)
        results = {
            "command": "python chapters/results/training_speed.py",
            "seed": 0,
            "batch": bench_training.BATCH,
            "commit": commit,
            "machine": f"1 thread a process, 2 cores of {platform.machine()}, torch {torch.__version__}",
            "date": datetime.date.today().isoformat(),
            "parts": parts,
        }
        OUT.write_text(json.dumps(results, ensure_ascii=False) + "\n")
