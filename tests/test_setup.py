"""The set-up files agree with each other and name no host."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
SITE = PROJECT["optional-dependencies"]["site"]
SET_UP = ["Makefile", "constraints.txt", "environment.yml", ".ci/run", ".pre-commit-config.yaml"]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def test_conda_brings_only_python_and_pip():
    conda = [line for line in environment()["dependencies"] if isinstance(line, str)]
    assert {re.split(r"[<>=]", line)[0] for line in conda} == {"python", "pip"}
    (python,) = [line.split("=")[1] for line in conda if line.startswith("python")]
    assert Version(python) in SpecifierSet(PROJECT["requires-python"])


def test_environment_equals_pyproject():
    (section,) = [line["pip"] for line in environment()["dependencies"] if isinstance(line, dict)]
    options = [line for line in section if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."]
    assert sorted(set(section) - set(options)) == sorted(DIRECT)


@pytest.mark.parametrize("name", SET_UP)
def test_set_up_names_no_host(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"://|index-url|find-links| @ |trusted-host", text)


def test_every_constraint_is_an_exact_pin():
    for pin in pins():
        assert [spec.operator for spec in pin.specifier] == ["=="], str(pin)
        assert pin.url is None
        assert "+" not in str(pin.specifier), f"a local build is no pin for others: {pin}"


@pytest.mark.parametrize("line", [*DIRECT, *SITE])
def test_every_direct_dependency_is_pinned_within_its_range(line):
    wanted = Requirement(line)
    found = [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert found, f"{wanted.name} has no pin: run the command in CONTRIBUTING.md"
    for pin in found:
        (spec,) = pin.specifier
        assert spec.version in wanted.specifier, f"{pin} is outside {wanted}"


@pytest.mark.skipif(
    os.environ.get("DFMSD_CHECK_PINS") != "1",
    reason="other versions in range are allowed; .ci/run sets DFMSD_CHECK_PINS=1",
)
def test_installed_equals_constraints():
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions()}
    wrong = []
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate():
            version = installed.get(canonicalize_name(pin.name))
            if version is not None and not pin.specifier.contains(version, prereleases=True):
                wrong.append(f"{pin.name} {version}, pinned {pin.specifier}")
    missing = [
        line for line in DIRECT if canonicalize_name(Requirement(line).name) not in installed
    ]
    assert not wrong
    assert not missing


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target", ["help", "demo", "test", "notebooks", "bench", "site", "lint", "clean"]
)
def test_make_knows_the_target(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), f"make {target} would do nothing"
    assert "Nothing to be done" not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_old_python_in_words(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "oldpython"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.1; exit; }\n'
        f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 1); $2"\n'
    )
    old.chmod(0o755)
    command = ["make", "test", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.9.1" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_the_main_notebook_is_where_make_expects_it():
    (main,) = re.findall(r"^MAIN := (\S+)$", (ROOT / "Makefile").read_text(), re.M)
    assert main == "notebooks/07_staged_distillation.ipynb"


def test_workflow_runs_the_one_script_on_supported_versions():
    flow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = flow["jobs"]["check"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    versions = job["strategy"]["matrix"]["python"]
    assert all(Version(v) in SpecifierSet(PROJECT["requires-python"]) for v in versions)
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)


def test_workflows_pin_their_actions_and_take_the_oldest_versions():
    lowest = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        text = path.read_text()
        yaml.safe_load(text)
        for action in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", action), f"{path}: {action}"
    for name in ("torch", "torchvision"):
        (bound,) = [spec.version for spec in lowest[name].specifier]
        assert f"'{name}=={bound}.*'" in (ROOT / ".github/workflows/versions.yml").read_text()


def test_issue_forms_ask_for_what_dfmsd_info_prints():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert forms
    for form in map(yaml.safe_load, (path.read_text() for path in forms)):
        assert {"name", "description", "body"} <= form.keys()
        assert "dfmsd info" in str(form["body"])


def test_the_address_stands_in_one_place():
    """Text that names a repository of ours would have to be changed by every fork."""
    pattern = re.compile(r"github\.com/[\w-]+/dfmsd\b")
    files = [*ROOT.glob("*.*"), *ROOT.glob("docs/**/*.*"), *ROOT.glob("notebooks/*.ipynb")]
    found = [
        path.name
        for path in files
        if path.is_file() and pattern.search(path.read_bytes().decode("utf-8", "replace"))
    ]
    assert found == ["pyproject.toml"]


def test_pre_commit_calls_files_that_exist():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].split() for repo in hooks for hook in repo["hooks"]]
    paths = [word for entry in entries for word in entry if word.startswith("tests/")]
    assert paths
    assert all((ROOT / path).is_file() for path in paths)


def test_licence_is_the_whole_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "APPENDIX: How to apply"):
        assert part in text


def test_this_python_is_supported():
    assert Version(".".join(map(str, sys.version_info[:3]))) in SpecifierSet(
        PROJECT["requires-python"]
    )
