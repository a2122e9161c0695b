#!/bin/bash
# Extract packages of Debian and all that they need into a root folder, for another CPU or release. Nothing of the
# system's own apt is changed, and no package's scripts run.
# .ci/root.sh FOLDER ARCHITECTURE RELEASE PACKAGE...: .ci/root.sh build/arm arm64 bookworm python3.11 libpython3.11-dev
set -euo pipefail
mkdir -p "$1"
root=$(cd "$1" && pwd)
architecture=$2 release=$3
shift 3
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{etc,state/lists/partial,cache/archives/partial}
touch "$apt/status"
echo "deb [signed-by=$keyring] http://deb.debian.org/debian $release main" >"$apt/etc/sources.list"
cat >"$apt/apt.conf" <<EOF
APT { Architecture "$architecture"; Architectures { "$architecture"; }; Sandbox::User "root"; };
APT::Install-Recommends "false";
Acquire { Languages "none"; Retries "2"; http::Timeout "30"; };
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
EOF
export APT_CONFIG=$apt/apt.conf
apt-get update -qq
apt-get install -qq --yes --download-only "$@"
for package in "$apt"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$root"; done
