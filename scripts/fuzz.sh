#!/bin/sh
# Runs every fuzz test for a time each: fuzz.sh [30s]. What is found stays in the package's testdata/fuzz, and is run by go test from then on.
set -eu
cd "$(dirname "$0")/.."
time=${1:-30s}
failed=0
for file in $(grep -rl '^func Fuzz' --include='*_test.go' .); do
	dir=$(dirname "$file")
	for name in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "== $dir $name"
		go test "$dir" -run '^$' -fuzz "^$name\$" -fuzztime "$time" || failed=1
	done
done
exit $failed
