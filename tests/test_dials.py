"""What the project claims of its two dials, measured on the embedded model: trained, sampled, compared."""

import pytest

import btsft_nb as bt


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """Trains with some dials in 4 bits and measures 100 test problems, 8 samples each."""
    problems = bt.load_rows("tiny/test")[:100]

    def run(data: str, **dials) -> dict[str, float]:
        folder = str(tmp_path_factory.mktemp("run"))
        run = dict(model="tiny", data=data, output_dir=folder, disable_tqdm=True)
        trainer = bt.finetune(bt.read_settings(**run, **dials, **bt.tiny.TRAINING))
        tokenizer = trainer.processing_class
        samples = bt.sample(
            trainer.model, tokenizer, problems, n=8, max_new_tokens=96, batch_size=400
        )
        summary = bt.evaluate(samples, [row["answer"] for row in problems], bt.tiny.way_of)
        return {name: metric["value"] for name, metric in summary["metrics"].items()}

    return run


def test_the_threshold_is_a_dial_of_diversity(measure):
    """Blurred and anchored, the model keeps at least 1.5 times the unique thoughts, and its answers."""
    plain = measure("tiny/teacher", threshold=0, anchor=0, beta=0)
    blurred = measure("tiny/teacher", threshold=0.5, anchor=1.0, beta=0.5)
    assert blurred["unique thoughts"] >= 1.5 * plain["unique thoughts"]
    assert blurred["accuracy"] >= plain["accuracy"] - 0.04


def test_beta_is_a_dial_of_the_format(measure):
    """Where four rows in ten lack the tags, beta 0.5 holds the format and beta 0 does not."""
    without = measure("tiny/messy", threshold=0, anchor=0, beta=0)
    held = measure("tiny/messy", threshold=0, anchor=0, beta=0.5)
    assert without["compliance"] < 0.5
    assert held["compliance"] >= 0.85
