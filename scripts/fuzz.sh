#!/bin/sh
# Runs every fuzz test for a time each: fuzz.sh [30s]. What is found stays in the package's testdata/fuzz, and is run by go test from then on.
set -eu
cd "$(dirname "$0")/.."
time=${1:-30s}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
grep -ro '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' . >"$list"
failed=0
while IFS=: read -r file found <&3; do
	name=${found#func }
	echo "== $(dirname "$file") $name"
	go test "$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "$time" || failed=1
done 3<"$list"
exit $failed
