"""The install cell as Colab runs it: which btsft_nb it takes, and what it leaves alone.

tests/test_colab.py runs it beside Colab's packages.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tools"))
import notebooks as tool  # noqa: E402

EXTRA = ["bitsandbytes", "sacrebleu", "portalocker", "colorama", "rouge_score", "math_verify"]
EXTRA += ["latex2sympy2_extended"]
ADDRESS = "git+https://github.com/owner/name"
COLAB = "import types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
RUN = """
class Shell:
    def run_line_magic(self, *words):
        print("magic:", *words)

exec(sys.argv[1], {"get_ipython": Shell})"""


def run(folder, before=COLAB, drive="/nowhere", packages=()):
    """What the cell prints and asks pip for, in a Python that has no packages but those of the folders named."""
    cell = tool.INSTALL.replace("/content/drive/MyDrive", str(drive))
    code = "\n".join(["import sys", f"sys.path += {[*map(str, packages)]}", before, RUN])
    # -S: without what is installed here
    line = [sys.executable, "-S", "-W", "error", "-c", code, cell]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env={})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def checkout(folder):
    """A folder with what tells a checkout, and the package in it."""
    (folder / "btsft_nb").mkdir(parents=True)
    (folder / "btsft_nb" / "__init__.py").touch()
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return folder


def installed(source, names=EXTRA):
    """The two lines of an installation."""
    words = [source, *names]
    pip = " ".join(f"'{word}'" for word in words)
    return [f"Installing {' '.join(map(str, words))}", f"magic: pip install -q --no-deps {pip}"]


def test_without_a_checkout_the_address_is_taken(tmp_path):
    """Neither another project nor a folder of that name is one, though Python takes the latter for a package."""
    (tmp_path / "btsft_nb").mkdir()
    other = tmp_path / "other"
    other.mkdir()
    text = '[project]\nname = "other"\ndependencies = ["btsft_nb"]\n# caf\u00e9'
    (other / "pyproject.toml").write_text(text, encoding="latin-1")
    assert run(tmp_path) == installed(ADDRESS)


@pytest.mark.parametrize("name", ["btsft_nb", "btsft_nb-main", "a fork"])
@pytest.mark.parametrize("place", ["notebooks", "deep/er", "..", "drive"])
def test_a_checkout_near_by_is_taken(tmp_path, name, place):
    """The notebook was opened in it; or it lies beside the notebook, cloned or unpacked, or on Drive."""
    drive = tmp_path / "drive"
    clone = checkout((drive if place == "drive" else tmp_path) / name)
    folder = clone / place if place in ("notebooks", "deep/er") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    assert run(folder, drive=drive) == installed(clone)


def test_what_is_near_comes_before_drive(tmp_path):
    checkout(tmp_path / "drive" / "unpacked")
    clone = checkout(tmp_path / "content" / "clone")
    assert run(tmp_path / "content", drive=tmp_path / "drive") == installed(clone)


def test_in_a_checkout_its_own_package_runs(tmp_path):
    """The working directory is on the path, so that there is no package to install."""
    assert run(checkout(tmp_path)) == installed(EXTRA[0], EXTRA[1:])


def test_only_what_is_missing_is_installed(tmp_path):
    """Trap 13: with --no-deps, so that nothing that Colab has is moved, nor a btsft_nb that is installed already."""
    packages = tmp_path / "packages"
    for name in ("btsft_nb", *EXTRA[:-1]):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    clone = checkout(tmp_path / "content" / "clone")
    assert run(clone.parent, packages=[packages]) == installed(EXTRA[-1], [])
    (packages / f"{EXTRA[-1]}.py").touch()
    assert run(clone.parent, packages=[packages]) == []


def test_elsewhere_nothing_is_done(tmp_path):
    checkout(tmp_path / "clone")
    assert run(tmp_path, before="") == []
