#!/usr/bin/env bash
# Builds what is shipped, kdbt-broker and kdbt-client, with their SHA-256:  deploy/release.sh FOLDER [OPTION of cargo build...]
# The same commit gives the same bytes in every folder and for everybody who has the same C compiler and linker, since neither
# paths nor the environment get into them. `cargo verify reproduce` tries it.
set -euo pipefail

folder=$(realpath -m "${1:?"the folder to put the programs into"}")
shift
cd -P "$(dirname "$0")/.."
source=$PWD
target=$(realpath -m "${CARGO_TARGET_DIR:-target}/release-build")
home=${CARGO_HOME:-$HOME/.cargo}
case "$source$target$home" in
*[[:space:]]*)
    echo "release: a path with blanks cannot be told to the compilers: use others than $source, $target, $home" >&2
    exit 2
    ;;
esac

# Only what leads to the tools and to the registry stays: no flag, no profile, no library of this machine.
for name in $(compgen -e); do
    case $name in
    PATH | HOME | TMPDIR | CARGO_HOME | RUSTUP_HOME | CARGO_NET_* | CARGO_HTTP_* | CARGO_REGISTR* | SSL_CERT_* | *_proxy | *_PROXY) ;;
    *) unset "$name" 2>/dev/null || true ;;
    esac
done
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=0 CARGO_TARGET_DIR=$target

# What stands in panics and assertions, for rustc and for the C of SQLite and aws-lc. Of several that fit the last one counts.
std=$(rustc --print sysroot)/lib/rustlib/src/rust
commit=$(rustc --version --verbose | sed -n 's/^commit-hash: //p')
for map in "$source=/kdbt" "$home=/cargo" "$target=/target" "$std=/rustc/$commit"; do
    RUSTFLAGS+=" --remap-path-prefix=$map"
    CFLAGS+=" -ffile-prefix-map=$map"
done
export RUSTFLAGS CFLAGS

# One at a time: together each would get the features that only the other asks for.
mkdir -p "$folder"
for program in kdbt-broker kdbt-client; do
    cargo build --locked --release -p "$program" "$@"
    cp "$target/release/$program" "$folder/"
done
cd "$folder"
sha256sum kdbt-broker kdbt-client | tee SHA256SUMS
