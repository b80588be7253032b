#!/usr/bin/env bash
# The image `snakecls` trains and serves, as its Dockerfile says: try_container.sh ENGINE [options of its `run`], such as docker, or podman --runtime runc.
# Podman keeps the health check only where it was built with --format docker.
set -euo pipefail
engine=$1; shift
work=$(mktemp -d)
trap '"$engine" rm -f snakecls-trial >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
"$engine" run --rm "$@" --network none --user "$(id -u)" --shm-size 64m -v "$work:/work" snakecls snakecls demo demo --tiny
best=$(ls -d "$work"/demo/runs/*/best)
chmod -R a+rX "$work"
"$engine" run -d "$@" --network none --name snakecls-trial -v "$best:/bundle:ro" snakecls >/dev/null
for _ in $(seq 60); do
  if "$engine" exec snakecls-trial python -c "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health', timeout=5)" 2>/dev/null; then break; fi
  sleep 2
done
photo=$(find "$work/demo" -name '*.jpg' | head -1)
"$engine" exec -i snakecls-trial python -c "
import json, os, sys, urllib.request as r
asked = r.Request('http://127.0.0.1:' + os.environ['PORT'] + '/predict', sys.stdin.buffer.read(), {'Content-Type': 'image/jpeg'})
answer = json.loads(r.urlopen(asked, timeout=60).read())
assert len(answer) == 3 and os.getuid() == 1000, (answer, os.getuid())
print('served by user', os.getuid(), [one['label'] for one in answer])
" < "$photo"
"$engine" stop -t 20 snakecls-trial >/dev/null
echo "the container trains and serves"
