set -u
export PYTHONPATH=$PWD
W=/tmp/runs; mkdir -p $W
( time timeout 200 python3 -m pytest -m gpu -q -rpsf --disable-warnings -p no:cacheprovider tests ) > $W/gpu-tests.txt 2>&1
tail -3 $W/gpu-tests.txt
for p in gemma-3-1b qwen3-30b-a3b deepseek-v3-6l ernie-4.5-21b-a3b glm-4.5-air; do
 echo "== $p"; ( time timeout 150 python3 -m cgbench run preset:$p --spec-tokens 3 --batch-sizes 1,8 --context-len 1024 --max-new-tokens 16 --acceptance synthetic:0.8,0.6,0.4 --output $W/$p-k3 ) > $W/$p.txt 2>&1; tail -22 $W/$p.txt | cut -c1-190
done
tar czf $OUT/all.tgz -C $W .
nvidia-smi --query-gpu=memory.used --format=csv
