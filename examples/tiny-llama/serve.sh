#!/usr/bin/env bash
# Serves a container for a moment and asks it twice: serve.sh CONTAINER MODEL MODEL
set -euo pipefail
container=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
address="http://127.0.0.1:$port"
echo "$ genai serve $container --port $port &"
genai serve "$container" --port "$port" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until curl -sf "$address/ready" >/dev/null; do
  kill -0 $server
  sleep 0.2
done
for model in "$@"; do
  body="{\"model\": \"$model\", \"prompt\": \"THIS SOFTWARE IS\", \"max_tokens\": 12, \"temperature\": 0}"
  echo "$ curl -s $address/v1/completions -d '$body'"
  curl -s "$address/v1/completions" -d "$body"
  echo
done
kill $server
wait $server
