#!/usr/bin/env bash
# Chromium and its driver for the tests in this folder: Debian's packages chromium and chromium-driver. Exit code 3, with
# a line that says why, where they are not there and cannot be installed.
set -euo pipefail

cannot() {
    echo "no Chromium for the tests: $1"
    exit 3
}

command -v chromium chromedriver >/dev/null && exit 0
[ "$(id -u)" = 0 ] || cannot "it is installed as root, and this is $(id -un)"
command -v apt-get >/dev/null || cannot "chromium and chromium-driver are not installed, and there is no apt-get"
log="${TMPDIR:-/tmp}/apt-chromium.log"
{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium chromium-driver fonts-dejavu-core; } >"$log" 2>&1 ||
    cannot "chromium and chromium-driver could not be installed; see $log"
