#!/bin/sh
# What can be checked without running an environment.
set -eu
cd "$(dirname "$0")/.."
fail=0
say() {
	printf 'check: %s\n' "$*" >&2
	fail=1
}

unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || say "not formatted, run gofmt -w:" $unformatted

go vet ./... || say "go vet found something"
go tool staticcheck ./... || say "staticcheck found something"
go test -run TestRoomsStayInTheirLayer . || say "a room is out of its layer"

# The generated code is what the definition gives.
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
scripts/generate.sh "$out"
for f in $(cd "$out" && find . -name '*.go'); do
	# protoc's own version stands in a comment and differs from machine to machine.
	grep -v '^// [ 	-]*protoc' "$out/$f" >"$out/new"
	grep -v '^// [ 	-]*protoc' "$f" 2>/dev/null | cmp -s - "$out/new" || say "$f is out of date: make generate"
done

# Every package says what it is.
for d in $(git ls-files '*.go' | grep -v -e _test.go -e /testdata/ -e '^test/' | xargs -n1 dirname | sort -u); do
	grep -lE '^// (Package|Command) ' "$d"/*.go >/dev/null 2>&1 || case $d in
	internal/api/isle/*) ;; # generated
	*) say "$d has no doc comment" ;;
	esac
done

# Every link to a file in the documentation leads somewhere.
for f in $(git ls-files '*.md'); do
	for link in $(grep -oE '\]\([^)# ]+' "$f" | cut -c3- | grep -v '^[a-z]*:' || true); do
		[ -e "$(dirname "$f")/$link" ] || say "$f: dead link $link"
	done
done

[ -z "$(git ls-files '*.sh' | xargs -n1 sh -n 2>&1)" ] || say "a script does not parse"
exit $fail
