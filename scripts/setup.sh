# Sourced by scripts/run and scripts/test: a virtual environment with the pinned dependencies.
# Usage: setup_venv [EXTRAS], EXTRAS such as [dev]. Sets ROOT.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed. Set PYTHON to one" >&2
    return 2
}

setup_venv() {
    local extras=${1:-} venv=$ROOT/.venv python stamp want
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python)
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv "$venv"
    fi
    # Installed once for each state of the two files, which a stamp records.
    stamp=$venv/installed$extras
    want=$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        echo "installing cgbench$extras and its dependencies (once, a few minutes)" >&2
        # An older pip compares every release of a package with a thousand tags, one after another:
        # a quarter of its time.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile 'pip>=25'
        # Python compiles what it imports. pip would compile every package whole, in a minute.
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
            --constraint "$ROOT/constraints.txt" --editable "$ROOT$extras"
        echo "$want" >"$stamp"
    fi
}
