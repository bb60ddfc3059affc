#!/bin/sh
# Sample slides, a harvest, and nuclei found by the shipped detector: in a container, or where there is no network.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python -m shared.samples.sample_slides . --side 1024 --tiles 1 1 1
python -m patch_extraction --wsi-dir slides --out shards --workers 1
python -m finetune.predict nuclei slides/Ki-67 --workers 0 --no-report
test -s shards/shard-000000.tar
test -s cells/summary.csv
echo "smoke test passed"
