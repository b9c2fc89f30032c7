#!/bin/sh
# Makes a folder with a real AArch64 Python and all that bnnedge needs to run and measure files, and pytest, that runs
# here under qemu-user, without root and without telling the host's dpkg of another architecture:
#   tests/aarch64/sysroot.sh [FOLDER]     default: ~/.cache/bnnedge/aarch64
#   FOLDER/python script.py               BNNEDGE_QEMU_CPU=cortex-a53 | cortex-a76 | max (default)
# BNNEDGE_PYTHONPATH goes before the folder's own packages. Needs apt-get, dpkg-deb, pip and qemu-aarch64-static, half a
# minute, and 260 MB of disk.
# A folder that is complete is left as it is.
set -eu

VERSION=4  # of what is in the folder: raise it to have it made anew
MIRROR=${BNNEDGE_DEBIAN_MIRROR:-http://deb.debian.org/debian}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
PYTHON=${PYTHON:-python3}
FOLDER=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/bnnedge/aarch64}

fail() {
  echo "sysroot.sh: $*" >&2
  exit 2
}

[ "$(cat "$FOLDER/.complete" 2>/dev/null || true)" = "$VERSION" ] && exit 0
for tool in apt-get dpkg-deb "$PYTHON"; do
  command -v "$tool" >/dev/null || fail "$tool not found; this needs Debian or Ubuntu with pip"
done
QEMU=$(command -v qemu-aarch64-static || command -v qemu-aarch64) ||
  fail "qemu-aarch64-static not found; apt-get install qemu-user-static"
[ -r "$KEYRING" ] || fail "$KEYRING not found; apt-get install debian-archive-keyring"

mkdir -p "$(dirname "$FOLDER")"
WORK=$(mktemp -d "$FOLDER.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
trap 'exit 130' INT TERM
ROOT=$WORK/root
mkdir -p "$ROOT" "$WORK/apt/lists/partial" "$WORK/apt/cache/archives/partial" "$WORK/apt/parts" "$WORK/log"
: >"$WORK/apt/status"
echo "deb [arch=arm64 signed-by=$KEYRING] $MIRROR bookworm main" >"$WORK/apt/sources.list"

# Everything that apt would read or write of the host's is turned to our own, but for how to reach the network.
cat >"$WORK/apt/apt.conf" <<CONF
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
Acquire::Languages "none";
Dir::State "$WORK/apt";
Dir::State::status "$WORK/apt/status";
Dir::Cache "$WORK/apt/cache";
Dir::Etc::sourcelist "$WORK/apt/sources.list";
Dir::Etc::sourceparts "$WORK/apt/parts";
Dir::Etc::preferencesparts "$WORK/apt/parts";
Dir::Log "$WORK/log";
APT::Sandbox::User "";
CONF
export APT_CONFIG="$WORK/apt/apt.conf"

quietly() {
  "$@" >"$WORK/log/last" 2>&1 || {
    tail -n 5 "$WORK/log/last" >&2
    fail "failed: $1 $2 $3"
  }
}
quietly apt-get --quiet update
quietly apt-get --quiet --yes --download-only install python3 libstdc++6 zlib1g
for package in "$WORK"/apt/cache/archives/*.deb; do
  dpkg-deb --extract "$package" "$ROOT"
done

quietly "$PYTHON" -m pip install --quiet --disable-pip-version-check --only-binary=:all: --python-version 3.11 \
  --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
  --platform manylinux2014_aarch64 --target "$ROOT/site" \
  numpy onnx onnxruntime ai-edge-litert flatbuffers rich pytest

# Both runtimes look at /proc/cpuinfo and crash on that of another architecture; qemu prefers a file in its root.
mkdir -p "$ROOT/proc"
for core in 0 1; do
  printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n' "$core"
done >"$ROOT/proc/cpuinfo"

cat >"$WORK/python" <<'WRAPPER'
#!/bin/sh
# AArch64 Python under emulation. Threads are emulated too, child processes are not.
here=$(cd "$(dirname "$0")" && pwd)
qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64)
exec "$qemu" -cpu "${BNNEDGE_QEMU_CPU:-max}" -L "$here/root" \
  -E PYTHONPATH="${BNNEDGE_PYTHONPATH:+$BNNEDGE_PYTHONPATH:}$here/root/site" \
  -E PYTHONDONTWRITEBYTECODE=1 -U LD_LIBRARY_PATH "$here/root/usr/bin/python3.11" "$@"
WRAPPER
chmod +x "$WORK/python"
"$WORK/python" -c 'import platform, numpy, ai_edge_litert.interpreter, onnxruntime; assert platform.machine() == "aarch64"' \
  >"$WORK/log/last" 2>&1 || { tail -n 5 "$WORK/log/last" >&2; fail "the AArch64 Python does not run under $QEMU"; }

rm -rf "$WORK/apt" "$WORK/log"
echo "$VERSION" >"$WORK/.complete"
rm -rf "$FOLDER"
mv "$WORK" "$FOLDER"
trap - EXIT
