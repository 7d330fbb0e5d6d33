"""Every comparison with the sizes of README.md's tables: ``python benchmarks/run_all.py --peers PYTHON``.

Writes results/NAME.json for each, then the tables of README.md and results/ratios.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RUNS = {
    "stage_one_small": "stage_one.py --size small --batch 256 --steps 1",
    "stage_one_small_batch_64": "stage_one.py --size small --batch 64 --steps 2 --rounds 3",
    "stage_one_small_bfloat16": "stage_one.py --size small --dtype bfloat16",
    # One peer at a time: both and ours take more than 24 GB.
    "stage_one_base": "stage_one.py --size base --steps 1 --rounds 3 --only authors",
    "stage_one_base_fused": "stage_one.py --size base --steps 1 --rounds 3 --only authors_fused",
    "stage_two_small": "stage_two.py --size small",
    "stage_two_small_bfloat16": "stage_two.py --size small --dtype bfloat16",
    "stage_two_base": "stage_two.py --size base --steps 1 --rounds 3",
    "profile_stage_one_small": "profile_step.py --stage one --batch 256 --rounds 3 --steps 2",
    "profile_stage_two_small": "profile_step.py --stage two --batch 64 --rounds 3",
    "loss": "loss.py --pairs 256 512 1024 2048 4096 8192",
    "loss_large": "loss.py --pairs 16384 131072 --rounds 3",
    "loss_bfloat16": "loss.py --pairs 8192 --dtype bfloat16",
    "zero_shot": "zero_shot.py",
    "evaluation": "evaluation.py --rounds 3",
    "switches_base": "switches.py --size base --steps 1 --rounds 3 --only plain dense locked checkpointing",
    "tokenization": "tokenization.py",
    "loader": "loader.py",
}
ON_A_GPU = {
    "gpu_stage_one_base": "stage_one.py --size base --batch 256 --dtype bfloat16",
    "gpu_stage_one_large": "stage_one.py --size large --batch 128 --dtype bfloat16",
    "gpu_stage_two_large": "stage_two.py --size large --batch 256 --dtype bfloat16",
    "gpu_switches_large": "switches.py --size large --batch 512 --dtype bfloat16 --only plain checkpointing compiled",
    "gpu_profile_stage_one_large": "profile_step.py --size large --batch 512 --dtype bfloat16 --rounds 3",
    "gpu_loss": "loss.py --pairs 1024 8192 16384 131072",
    "gpu_loss_bfloat16": "loss.py --pairs 1024 8192 16384 131072 --dtype bfloat16",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", required=True, help="the interpreter of the peers' environment")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    known = ", ".join([*RUNS, *ON_A_GPU])
    parser.add_argument("--only", nargs="+", choices=[*RUNS, *ON_A_GPU], metavar="NAME", help=known)
    options = parser.parse_args()
    runs = ON_A_GPU if options.device == "cuda" else RUNS
    if unknown := set(options.only or []) - set(runs):
        parser.error(f"--only {' '.join(sorted(unknown))}: not with --device {options.device}")
    (HERE / "results").mkdir(exist_ok=True)
    for name in options.only or runs:
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        script, *arguments = runs[name].split()
        command = [sys.executable, str(HERE / script), *arguments, "--json", str(HERE / "results" / f"{name}.json")]
        if script != "tokenization.py":
            command += ["--peers", options.peers]
        if script not in ("tokenization.py", "loader.py"):
            command += ["--device", options.device]
        subprocess.run(command, check=True)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    subprocess.run([sys.executable, str(HERE / "tables.py")], check=True)


if __name__ == "__main__":
    main()
