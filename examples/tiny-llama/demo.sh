#!/usr/bin/env bash
# A quantized LLM through every stage, for Snapdragon and for the CPU, and a prompt through both.
set -euo pipefail
cd "$(dirname "$0")"
out="${DEMO_OUTPUT:-$(cd ../.. && pwd)/demo}"
prompt='def __init__(self, '

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
number=0
step() { number=$((number + 1)); say "$number. $*"; }
show() { printf '$'; for word in "$@"; do [[ $word == *[^[:alnum:]/._=:,-]* ]] && word="'$word'"; printf ' %s' "$word"; done; echo; "$@"; }

targets=(sm8750 cpu)
build=(genai build -f build.yaml --output "$out")
if ! python -c 'import importlib.metadata as m; m.version("onnxruntime-qnn")' 2>/dev/null; then
  say "The vendor's wheel (onnxruntime-qnn) is not made for this machine: only the CPU container is built."
  targets=(cpu)
  build=(genai build model --name tiny-llama --target cpu --output "$out")
fi

step "What will be built"
show genai graph -f build.yaml
step "Build"
show "${build[@]}"
for target in "${targets[@]}"; do
  step "Run the $target container"
  show genai run "$out/tiny-llama/$target" --prompt "$prompt" --max-tokens 24
done
step "How good is it? Loss on held-out text, nats a token"
show genai evaluate "$out/tiny-llama/cpu" --tokens ../../tests/fixtures/tokens/eval.npy
step "Two LoRA adapters onto the same base: only they are imported, and one is chosen by its name"
show genai build -f adapters.yaml --output "$out"
for adapter in c-headers uppercase; do
  show genai run "$out/tiny-llama-adapters/cpu" --prompt 'THIS SOFTWARE IS' --max-tokens 12 --adapter "$adapter"
done
if command -v curl >/dev/null; then
  step "Serve it: the request's model chooses the adapter"
  show ./serve.sh "$out/tiny-llama-adapters/cpu" tiny-llama-adapters uppercase
fi
step "Once more: nothing has changed, so nothing runs"
show "${build[@]}"
say "The containers are in $out/tiny-llama; 'genai inspect' shows what is in them."
