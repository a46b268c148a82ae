#!/bin/sh
# Generates Go from the API's definition, into the folder named.
set -eu
cd "$(dirname "$0")/.."
out=$1
go build -o bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
PATH=$PWD/bin/tools:$PATH exec protoc -I internal/api \
	--go_out="$out" --go_opt=module=isle --connect-go_out="$out" --connect-go_opt=module=isle \
	internal/api/isle/v1/*.proto
