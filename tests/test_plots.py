"""Figures: what is drawn is what was given, with units, in Axes that the caller may bring, and read without colour."""

import inspect
import itertools
import warnings

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from transformers import TrainerState

from btsft_nb import LiveCurves, evaluate
from btsft_nb.data.kinds import KIND_COLORS
from btsft_nb.views import plots

matplotlib.use("Agg")
EXAMPLES = [
    {"input_ids": [7] * n, "kinds": [0] * 3 + [1] * 2 + [2] * (n - 6) + [3]}
    for n in (9, 9, 10, 14, 90)
]
LOGS = [
    {"step": step, "nll_think": 1 / step, "nll_answer": 0.5, "nll_tag": 0.1, "blurred_share": 0.2,
     "expected_reward": 0.3, "format_reward": 0.0}
    for step in (5, 10)
]  # fmt: skip
SAMPLES = [
    {"prompt": i, "sample": 0, "text": f"<think>{i}</think>{i}", "prefilled": False, "finished": True} for i in range(4)
]  # fmt: skip
SUMMARIES = {
    name: evaluate(SAMPLES, answers, lambda thought: "odd" if int(thought) % 2 else "even")
    for name, answers in {"before": "0123", "after": "0103"}.items()
}
SIX = {f"run {i}": SUMMARIES["after"] for i in range(6)}
SEEDED = {name: s | {"seeds": {"accuracy": [0.2, 0.4]}} for name, s in SUMMARIES.items()}
NLL, SHARE = "nats per token", "share of samples"

# the labels of the axes of each of its Axes ("" where ticks name categories), and a drawing of it
PLOTS = {
    "training_curves": (
        [
            ("step", f"nll, {NLL}"),
            ("step", "blurred share, or reward"),
        ],
        lambda **at: plots.training_curves({"a": LOGS, "b": LOGS[:1]}, "title", **at),
    ),
    "intervals": (
        [(SHARE, ""), ("share of prompts", ""), ("ways per prompt", "")],
        lambda **at: plots.intervals(SEEDED, ["accuracy", "pass@1", "ways of thinking"], **at),
    ),
    "frontier": (
        [("unique thoughts, " + SHARE, "accuracy, " + SHARE)],
        lambda **at: plots.frontier({"dial": SUMMARIES}, "unique thoughts", "accuracy", **at),
    ),
}
EDGES = {
    "no logs yet": lambda: plots.training_curves({"just begun": []}),
    "no runs": lambda: plots.training_curves({}),
    "partial logs": lambda: plots.training_curves(
        {"a": [{"step": 1, "nll_think": 1.0}, {"step": 1}]}
    ),
    "many models": lambda: plots.intervals(SIX, ["accuracy"]),
    "no points yet": lambda: plots.frontier({}, "accuracy", "compliance"),
}


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def flat(axes) -> list[plt.Axes]:
    return list(np.ravel(axes))


def given_axes(name: str, style: str = "default") -> dict:
    """The keyword and new Axes, made in a style that is not ours, for the plot of that name."""
    with plt.style.context(style):
        axes = Figure((13, 4)).subplots(1, len(PLOTS[name][0]))
    return {"axes": axes} if isinstance(axes, np.ndarray) else {"ax": axes}


def save(axes) -> Figure:
    """Draws the figure and saves it; a warning is an error."""
    figure = flat(axes)[0].figure
    with warnings.catch_warnings(), open("/dev/null", "wb") as file:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        figure.savefig(file, format="png")
    return figure


def words(texts) -> list[str]:
    return [text.get_text() for text in texts]


# ---------------------------------------------------------------------------------------------- Axes, labels, warnings


def test_no_plot_is_forgotten():
    """Each public function of `plots` that is its own is drawn here."""
    public = {
        name
        for name, f in vars(plots).items()
        if inspect.isfunction(f) and f.__module__ == plots.__name__
    }
    assert {name for name in public if not name.startswith("_")} == set(PLOTS)


@pytest.mark.parametrize("name", PLOTS)
def test_given_axes_are_drawn_into_and_come_back(name):
    """The last argument of each function; nothing is opened, and what else is on them stays."""
    assert list(inspect.signature(getattr(plots, name)).parameters)[-1] in ("ax", "axes")
    given = given_axes(name)
    (axes,) = given.values()
    before = flat(axes)[0].plot([0, 1], [0, 1])
    drawn = PLOTS[name][1](**given)
    assert isinstance(drawn, list) == ("axes" in given) and flat(drawn) == flat(axes)
    assert before[0] in flat(axes)[0].lines and plt.get_fignums() == []
    save(drawn)


@pytest.mark.parametrize("name", PLOTS)
def test_without_axes_one_figure_of_pyplot_is_made(name):
    """So that a notebook shows it under the cell; each axis has a label with the unit, or names of models."""
    labels, draw = PLOTS[name]
    axes = flat(draw())
    assert plt.get_fignums() == [1] and plt.figure(1).axes == axes
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in axes] == labels
    if name == "intervals":  # the other Axes share the rows of the first
        assert words(axes[0].get_yticklabels()) == list(SUMMARIES)
    save(axes)


def test_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="longer"):
        PLOTS["intervals"][1](axes=Figure().subplots(1, 2))


@pytest.mark.parametrize("draw", EDGES.values(), ids=EDGES)
def test_little_or_much_is_drawn_without_a_warning(draw):
    save(draw())


HOSTILE = [
    "", " ", "$$", " $_$", r"$\frac{", "_", "\n\n", "\t", "\x00", "\x1b[31m", "\u202ertl\u202c", "\u200b", "\ud800",
    "\ufeff", "\U000e0041", "思考", "\U0001f914", "e\u0301", "<b>", "x" * 5000, "\\", "%", "#", "{", "^", "العربية",
]  # fmt: skip


@pytest.mark.parametrize("texts", [HOSTILE[::2], HOSTILE[1::2]], ids=range(2))
def test_any_text_is_drawn_as_text(texts):
    """As a name: no mathematics, nothing that turns the line round or leaves it."""
    log = [{"step": 1, "nll_think": 2.0}]
    save(plots.training_curves(dict.fromkeys(texts, log), texts[1]))
    save(plots.intervals(dict.fromkeys(texts, SUMMARIES["after"]), ["accuracy"]))
    series = {text: {text: SUMMARIES["after"]} for text in texts}
    assert save(plots.frontier(series, "unique thoughts", "accuracy")).get_tightbbox().width < 9


def test_names_show_what_cannot_be_seen():
    """By its mark; what has no glyph is left to matplotlib, which draws a box and says so."""
    points = {"\u200b": SUMMARIES["after"]}
    ax = plots.frontier({"a\u202eb\u00e9\n": points}, "unique thoughts", "accuracy")
    assert words(ax.get_legend().texts) == ["a\u27e8U+202E\u27e9b\u00e9\u21b5"]
    assert words(ax.texts) == ["\u27e8U+200B\u27e9"]


def test_live_curves_leave_no_figure_open():
    """They draw every second for hours."""
    curves = LiveCurves("run", {"before": LOGS})
    state = TrainerState(global_step=5, max_steps=10, log_history=LOGS)
    with plt.style.context("dark_background"):
        curves.on_train_begin(None, state, None)
        image = curves._picture(state)
    assert image.data.startswith(b"\x89PNG") and image.alt.startswith("run: step 5 of 10")
    assert plt.get_fignums() == []


# ---------------------------------------------------------------------------------------------- data


def test_curves_have_the_points_of_the_logs():
    """Of each run and key; where a log lacks one, the curve does without."""
    logs = [*LOGS, {"step": 12, "nll_think": 3.0}, {"step": 13, "loss": 1.0}]
    axes = plots.training_curves({"a": logs, "b": LOGS[:1]}, "how far")
    keys = [
        ["nll_think", "nll_answer", "nll_tag"],
        ["blurred_share", "expected_reward", "format_reward"],
    ]
    for ax, names in zip(axes, keys, strict=True):
        drawn = [line.get_xydata().tolist() for line in ax.lines]
        runs = itertools.product((logs, LOGS[:1]), names)
        assert drawn == [
            [[log["step"], log[key]] for log in run if key in log] for run, key in runs
        ]
    curves = [f"{run}, {key}" for run in "ab" for key in keys[0]]
    assert words(axes[0].get_legend().texts) == curves
    assert axes[0].figure.get_suptitle() == "how far"


def test_frontier_is_a_line_through_points_with_both_intervals():
    """One for each series, in the order of its points, each with its label."""
    ax = plots.frontier(
        {"dial": SUMMARIES, "other": {"": SUMMARIES["after"]}}, "unique thoughts", "accuracy"
    )
    at = [
        [s["metrics"][name] for name in ("unique thoughts", "accuracy")] for s in SUMMARIES.values()
    ]
    line = ax.containers[0].lines[0].get_xydata()
    assert np.allclose(line, [[m["value"] for m in pair] for pair in at])
    for axis, bars in enumerate(ax.containers[0].lines[2]):
        ends = [[pair[axis]["low"], pair[axis]["high"]] for pair in at]
        assert np.allclose([segment[:, axis] for segment in bars.get_segments()], ends)
    assert words(ax.texts) == ["before", "after", ""] and words(ax.get_legend().texts) == [
        "dial",
        "other",
    ]


def test_intervals_have_a_row_for_each_model_and_a_tick_for_each_seed():
    """In the order given; where there are no seeds, no ticks."""
    seeds_of = {"accuracy": 2, "pass@1": 0}
    for ax, (metric, seeds) in zip(
        plots.intervals(SEEDED, list(seeds_of)), seeds_of.items(), strict=True
    ):
        measured = [summary["metrics"][metric] for summary in SEEDED.values()]
        (container,) = ax.containers
        points = container.lines[0].get_xydata().tolist()
        assert points == [[m["value"], row] for row, m in enumerate(measured)]
        segments = container.lines[2][0].get_segments()
        ends = [[[m["low"], row], [m["high"], row]] for row, m in enumerate(measured)]
        assert np.allclose(segments, ends)
        ticks = [
            line.get_xydata().tolist()
            for line in ax.lines
            if line.get_marker() == "|" and line.get_markersize() == 9
        ]
        assert ticks == [[[x, row] for x in (0.2, 0.4)[:seeds]] for row in range(len(SEEDED))]


# ---------------------------------------------------------------------------------------------- read by everyone

# Machado, Oliveira and Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency",
# table 1, severity 1.0; on linear RGB
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour) -> np.ndarray:
    """sRGB -> linear RGB."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear RGB -> CIELAB under D65."""
    t = XYZ @ rgb.clip(0, 1) / XYZ.sum(axis=1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(ink, ground) -> float:
    """WCAG 2: 1 to 21."""
    dark, light = sorted(float(XYZ[1] @ linear(colour)) for colour in (ink, ground))
    return (light + 0.05) / (dark + 0.05)


def test_the_yardsticks():
    """Black on white; the lightness of white; red and green that a protanope confuses."""
    assert contrast("black", "white") == pytest.approx(21) and contrast(
        "#767676", "white"
    ) == pytest.approx(4.54, abs=0.01)
    assert lab(np.ones(3)) == pytest.approx([100, 0, 0], abs=1e-6)
    assert lab(linear("red")) == pytest.approx([53.24, 80.09, 67.20], abs=0.01)
    olive, brown = (
        lab(np.array(SIGHT["deuteranopia"]) @ linear(colour)) for colour in ("#6b8e00", "#a37000")
    )
    assert (
        np.linalg.norm(olive - brown)
        < 20
        < np.linalg.norm(lab(linear("#6b8e00")) - lab(linear("#a37000")))
    )


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "palette", [plots.COLORS, [*KIND_COLORS.values(), "white"]], ids=["series", "kinds"]
)
def test_colours_stay_apart_in_every_eye(palette, sight):
    """By 10 or more in CIELAB (2 is just noticeable): none is mistaken for another on the same card."""
    seen = {colour: lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in palette}
    for a, b in itertools.combinations(palette, 2):
        assert np.linalg.norm(seen[a] - seen[b]) >= 10, f"{a} and {b}"


def middle(text: Text) -> np.ndarray:
    """In pixels of the figure."""
    return text.get_window_extent().get_points().mean(axis=0)


@pytest.mark.parametrize("style", ["default", "dark_background", "given, dark_background"])
@pytest.mark.parametrize("name", PLOTS)
def test_all_text_has_contrast(name, style):
    """4.5 or more, WCAG's AA, also where the user's own style or Axes are dark."""
    *given, style = style.split(", ")
    with plt.style.context(style):
        settings = dict(plt.rcParams)
        figure = save(PLOTS[name][1](**(given_axes(name, style) if given else {})))
        assert dict(plt.rcParams) == settings, "those of the user stay"
        texts = [
            text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()
        ]
        texts = [
            text for text in texts if figure.bbox.contains(*middle(text))
        ]  # ticks beyond the limits lie outside
        faces = {to_hex(part.get_facecolor()) for part in (figure, *figure.axes)}
        assert len(texts) > 5 and faces == {"#ffffff"}
        for text in texts:
            assert contrast(text.get_color(), "white") >= 4.5, text.get_text()


SERIES = {
    "training_curves": lambda: plots.training_curves({str(i): LOGS for i in range(6)}),
    "frontier": lambda: plots.frontier(
        {str(i): SUMMARIES for i in range(6)}, "unique thoughts", "accuracy"
    ),
}


@pytest.mark.parametrize("name", SERIES)
def test_series_differ_in_more_than_colour(name):
    """In marker and dashes."""
    for ax in flat(SERIES[name]()):
        looks = [
            (line.get_linestyle(), line.get_marker())
            for line in ax.lines
            if line.get_marker() not in "|_" and line.get_linestyle() + line.get_marker()
        ]
        assert len(set(looks)) == len(looks) > 1
