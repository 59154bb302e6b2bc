"""`scripts/demo` and `scripts/test` up to where they would install something: in a copy, with a stub for Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
LOG = '$(dirname -- "$0")/log'

# makes an "environment" of itself, with a pip that writes down what it is asked for
STUB = f"""#!/bin/sh
case "$*" in
    *"-m venv --clear "*)
        for folder; do :; done
        rm -rf "$folder"
        mkdir -p "$folder/bin"
        cp "$0" "$folder/bin/python"
        printf '#!/bin/sh\\npwd\\nprintf "%%s\\\\n" "$0" "$@"\\n' > "$folder/bin/style-aligned"
        printf '#!/bin/sh\\n' > "$folder/bin/ruff"
        chmod +x "$folder/bin/"*;;
    *"-m pip --version") echo "pip 24";;
    *"-m "*) echo "$@" >> "{LOG}";;
    *) exec '{sys.executable}' "$@";;
esac
"""
OLD = """#!/bin/sh
case "$*" in
    *sys.exit*) exit 1;;
    *) echo 3.9.18;;
esac
"""


def executable(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "the project"
    for name in ("demo", "environment", "reproduce_table_2", "test"):
        executable(root / "scripts" / name, (SCRIPTS / name).read_text())
    return root


def run(
    project: Path, script: str, *arguments: str, folder: Path | None = None, python: str | None = None
) -> subprocess.CompletedProcess[str]:
    stub = executable(project.parent / "python-stub", STUB)
    return subprocess.run(
        [project / "scripts" / script, *arguments],
        cwd=folder or project,
        env={**os.environ, "PYTHON": python or str(stub), "CDPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


def log(project: Path) -> list[str]:
    return (project / ".venv" / "bin" / "log").read_text().splitlines()


def test_the_demo_writes_where_it_is_called_from(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    (folder / "typing.py").write_text("raise SystemExit('what lies here is imported')")
    done = run(project, "demo", "--output", "mine.png", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    program = project / ".venv" / "bin" / "style-aligned"
    assert done.stdout.splitlines() == [str(folder), str(program), "demo", "--output", "mine.png"]
    assert log(project) == [f"-I -m pip install --quiet --constraint {project}/constraints.txt --editable {project}"]
    assert [path.name for path in folder.iterdir()] == ["typing.py"]


@pytest.mark.parametrize("script", ["scripts/demo", "./demo", "../scripts/demo"])
def test_the_demo_by_relative_paths(project: Path, script: str) -> None:
    folder = project if script == "scripts/demo" else project / "scripts"
    stub = executable(project.parent / "python-stub", STUB)
    environment = {**os.environ, "PYTHON": str(stub), "CDPATH": str(project)}
    done = subprocess.run([script], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [str(folder), str(project / ".venv" / "bin" / "style-aligned"), "demo"]


def test_table_2_installs_what_it_takes(project: Path, tmp_path: Path) -> None:
    assert run(project, "reproduce_table_2", "--sets", "3", folder=tmp_path).returncode == 0
    assert log(project) == [
        f"-I -m pip install --quiet --constraint {project}/constraints.txt --editable {project}[hub,metrics]",
        "-m scripts.table_2 --sets 3",
    ]


def test_the_tests_run_in_the_project(project: Path, tmp_path: Path) -> None:
    assert run(project, "test", folder=tmp_path).returncode == 0
    assert log(project) == [
        "-m pip install --quiet --constraint constraints.txt --editable .[test]",
        "-m pyright",
        "-m pytest --numprocesses 2 --dist worksteal",
    ]
    assert run(project, "test", "-k", "fox", folder=tmp_path).returncode == 0
    assert log(project)[-1] == "-m pytest -k fox"


@pytest.mark.parametrize("script", ["demo", "test"])
def test_an_environment_without_pip_is_given_it(project: Path, script: str) -> None:
    run(project, "demo")
    (project / ".venv" / "mine").touch()
    without_pip = STUB.replace('echo "pip 24"', f'grep -q ensurepip "{LOG}"')
    executable(project / ".venv" / "bin" / "python", without_pip)
    (project / ".venv" / "bin" / "log").unlink()
    done = run(project, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert (project / ".venv" / "mine").exists()


def test_an_environment_that_cannot_be_mended_is_made_anew(project: Path) -> None:
    executable(project / ".venv" / "bin" / "python", '#!/bin/sh\n[ "$1" = -c ]\n')
    (project / ".venv" / "rest").touch()
    done = run(project, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (project / ".venv" / "rest").exists()


def test_an_environment_with_pip_is_kept(project: Path) -> None:
    assert run(project, "demo").returncode == 0
    (project / ".venv" / "mine").touch()
    assert run(project, "demo").returncode == 0
    assert (project / ".venv" / "mine").exists()


@pytest.mark.parametrize("script", ["demo", "test"])
def test_an_old_python_is_refused(project: Path, tmp_path: Path, script: str) -> None:
    old = executable(tmp_path / "old", OLD)
    done = run(project, script, python=str(old))
    assert (done.returncode, done.stdout) == (2, "")
    given = f"3.9.18 ({old})"
    assert done.stderr == (
        f"style-aligned: error: expected Python 3.10 or newer, got {given}: set PYTHON to another one\n"
    )
    assert not (project / ".venv").exists()


def test_a_missing_python_is_told(project: Path) -> None:
    done = run(project, "demo", python="python-that-is-not-there")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "style-aligned: error: expected Python 3.10 or newer, got none (python-that-is-not-there): "
        "set PYTHON to another one"
    ]


def test_an_environment_of_an_old_python_is_made_anew(project: Path) -> None:
    executable(project / ".venv" / "bin" / "python", OLD)
    assert run(project, "demo").returncode == 0
    assert "3.9.18" not in (project / ".venv" / "bin" / "python").read_text()
