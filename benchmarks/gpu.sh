#!/usr/bin/env bash
# What a session with a GPU does, in commands of at most ten minutes on a bare machine that cannot reach a registry.
#
#   bash benchmarks/gpu.sh pack      here, before: wheels into .whl/; with OFFICIAL=DIR (wdm-3d) and MED_OFFICIAL=DIR
#                                    (3D-MedDiffusion) copies of their networks in .gpu/
#   bash benchmarks/gpu.sh test      there: gpu_check.py (goldens, precision, slab decoding on CUDA ...), then the fast tests
#   bash benchmarks/gpu.sh bench     there: bench_wdm.py and bench_wavelets.py; results to $OUT
#   bash benchmarks/gpu.sh nearest   there: bench_nearest.py, 500 against 1262 volumes at 128 voxels a side
#   bash benchmarks/gpu.sh patch_volume   there: bench_patch_volume.py at 256³ and 8x at 512³, bench_stage2_memory.py
#   bash benchmarks/gpu.sh train     there: wdm-brain-64 for TRAIN_SECONDS, resuming; then export
#   bash benchmarks/gpu.sh pvldm     there: pvldm-cohort-64 by train_pvldm.sh for TRAIN_SECONDS, resuming; weights to $OUT
#   bash benchmarks/gpu.sh informed  there: informed-slice-brain-64 and Make-A-Volume by train_informed_slice.sh, likewise
#   bash benchmarks/gpu.sh slices    there: slice-brain-64 by train_slice_conditioned.sh, likewise
#   bash benchmarks/gpu.sh export    there: raw and averaged weights in 16 bit, log and pictures to $OUT
#   bash benchmarks/gpu.sh stats     there: statistics of the latest averaged weights to $OUT
#
# .whl and .gpu are ignored by git: carry them along. The run lives in runs/, which stays on the machine between two
# commands and must not be carried; $OUT comes back after each. Lost with the machine: the optimiser's state, so that a
# new one starts from the exported weights (INIT=FOLDER_OF_A_PIPELINE).
#
# Settings (environment): DEVICE=cuda, OUT=outputs/gpu, STEPS=40000, BATCH=16, SUBJECTS=4000, LEARNING_RATE=4e-4,
# TRAIN_SECONDS=520, SMALL=1 for a dry run of a few steps, which also works with DEVICE=cpu. pvldm takes the GRIDS of
# train_pvldm.sh: with two commands or more to spare, GRIDS="64,64,64;64,64,48;128,128,128" PVLDM_RUN=runs/pvldm-cohort-128.
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda}
OUT=${OUT:-outputs/gpu}
SMALL=${SMALL:-}
RUN=${RUN:-runs/wdm-brain-64}
CACHE=${CACHE:-runs/cohort}
SITE=${SITE:-/tmp/site}
PYTHON=${PYTHON:-python3}
WHEELS=(diffusers datasets nibabel monai ptwt PyWavelets dill multiprocess requests charset-normalizer
  importlib_metadata zipp einops einops-exts timm)
LIMIT_MIB=64

pack() {
  mkdir -p .whl .gpu
  rm -f .whl/*.whl
  local package wanted platforms=()
  for glibc in 28 27 17; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
  platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
  for package in "${WHEELS[@]}"; do
    # the version in use here, so that what was tested is what runs there
    wanted=$("$PYTHON" -c "from importlib.metadata import version; print(version('$package'))" 2>/dev/null || true)
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --python-version 3.12 --implementation cp "${platforms[@]}" -d .whl "$package${wanted:+==$wanted}"
  done
  if [[ -n ${OFFICIAL:-} ]]; then
    rm -rf .gpu/official
    mkdir -p .gpu/official
    (cd "$OFFICIAL" && tar -cf - DWT_IDWT/*.py guided_diffusion/*.py) | tar -xf - -C .gpu/official
  fi
  if [[ -n ${MED_OFFICIAL:-} ]]; then
    rm -rf .gpu/med_official
    mkdir -p .gpu/med_official
    (cd "$MED_OFFICIAL" && tar -cf - AutoEncoder/*.py AutoEncoder/model/*.py ddpm/*.py) | tar -xf - -C .gpu/med_official
  fi
  local tree wheels total
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb --apparent-size 2>/dev/null |
    awk '$2 == "total" { sum += $1 } END { print sum }')
  wheels=$(du -sb .whl .gpu | awk '{ sum += $1 } END { print sum }')
  total=$(((tree + wheels) / 1048576))
  ls .whl
  printf 'tree %d MiB, .whl and .gpu %d MiB, together %d of %d MiB\n' \
    $((tree / 1048576)) $((wheels / 1048576)) "$total" "$LIMIT_MIB"
  if ((total >= LIMIT_MIB)); then
    echo "too large to travel: remove something from the tree or from WHEELS" >&2
    return 1
  fi
}

# Wheels into a folder of their own: the machine's own packages stay as they are.
prepare() {
  if [[ $DEVICE == cuda* && -d .whl && ! -e $SITE/.complete ]]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
    touch "$SITE/.complete"
  fi
  export PYTHONPATH="$SITE:src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
  mkdir -p "$OUT"
}

check() {
  "$PYTHON" benchmarks/gpu_check.py --device "$DEVICE" 2>&1 | tee "$OUT/gpu_check.txt"
  local tests=(tests/test_wavelets.py tests/models tests/schedulers tests/pipelines)
  [[ -n $SMALL ]] && tests=(tests/test_wavelets.py tests/models)
  "$PYTHON" -m pytest -p no:cacheprovider "${tests[@]}" 2>&1 | tee "$OUT/pytest.txt"
}

bench() {
  local official=()
  [[ -d .gpu/official ]] && official=(--official .gpu/official)
  if [[ -n $SMALL ]]; then
    "$PYTHON" benchmarks/bench_wdm.py --device "$DEVICE" "${official[@]}" --sizes 64 --rounds 1 --parts forward \
      --no-compile --out "$OUT"
    "$PYTHON" benchmarks/bench_wavelets.py "${official[@]}" --sizes 32 --rounds 2 --out "$OUT"
    return
  fi
  "$PYTHON" benchmarks/bench_wdm.py --device "$DEVICE" "${official[@]}" --sizes 128 --out "$OUT" --name bench_wdm_cuda_128
  "$PYTHON" benchmarks/bench_wdm.py --device "$DEVICE" "${official[@]}" --sizes 256 --rounds 5 --out "$OUT" \
    --name bench_wdm_cuda_256
  "$PYTHON" benchmarks/bench_wdm.py --device "$DEVICE" "${official[@]}" --sizes 128 --model cwdm --no-compile --out "$OUT"
  "$PYTHON" benchmarks/bench_wavelets.py "${official[@]}" --threads 8 --out "$OUT" --name bench_wavelets_16_cores
}

# Matching 500 volumes to 1262 by MS-SSIM, all pairs at 128 voxels a side.
nearest() {
  local subjects=1762 arguments=(--parts rate full --size 128)
  if [[ -n $SMALL ]]; then subjects=8 arguments=(--parts rate); fi
  OMP_NUM_THREADS=1 simulate "$subjects"
  "$PYTHON" benchmarks/bench_nearest.py --device "$DEVICE" "${arguments[@]}" --candidates 0 --memory 20 \
    --cache-dir "$CACHE" --out "$OUT" --name "nearest_${DEVICE%%:*}"
}

# One command a size: each ends well within the ten minutes, and what is done adds to the same result.
patch_volume() {
  local official=() arguments=(--device "$DEVICE" --out "$OUT")
  [[ -d .gpu/med_official ]] && official=(--official .gpu/med_official)
  if [[ -n $SMALL ]]; then
    "$PYTHON" benchmarks/bench_patch_volume.py "${official[@]}" "${arguments[@]}" --sizes 64 --factors 8 --rounds 1 \
      --parts encode decode denoise --slab-gb 0.1 0.2
    "$PYTHON" benchmarks/bench_stage2_memory.py "${arguments[@]}" --grids 64x64x64 --factors 4 --variants efficient
    return
  fi
  "$PYTHON" benchmarks/bench_patch_volume.py "${official[@]}" "${arguments[@]}" --sizes 256 --rounds 3 --slab-gb 1 4 \
    --add
  "$PYTHON" benchmarks/bench_stage2_memory.py "${official[@]}" "${arguments[@]}" \
    --grids 64x64x64 128x128x128 192x192x192
  "$PYTHON" benchmarks/bench_patch_volume.py "${official[@]}" "${arguments[@]}" --sizes 512 --factors 8 --rounds 1 --add
}

# Simulate the subjects on all cores, before the training reads them one by one.
simulate() {
  "$PYTHON" - "$1" "$CACHE" <<'PYTHON'
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import torch

from voxdiff.data.cohort import CohortDataset

number, cache = int(sys.argv[1]), sys.argv[2]
cohort = CohortDataset(number, split="train", size=64, cache_dir=cache, cache=False)


def make(index: int) -> None:
    torch.set_num_threads(1)
    cohort[index]


if __name__ == "__main__":
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(number), chunksize=8))
    print(f"{number} subjects")
PYTHON
}

train() {
  local steps=${STEPS:-40000} batch=${BATCH:-16} subjects=${SUBJECTS:-4000} every=1000 validate=10000 workers=8
  if [[ -n $SMALL ]]; then steps=${STEPS:-4} batch=${BATCH:-2} subjects=${SUBJECTS:-4} every=2 validate=4 workers=0; fi
  OMP_NUM_THREADS=1 simulate "$subjects"
  local model=(
    --resolution 64 --block_out_channels "32,48,64,72" --layers_per_block 1 --norm_num_groups 8
    --band_scales "3,.25,.25,.25,.25,.25,.25,.25"
  )
  [[ -n ${INIT:-} ]] && model=(--pretrained_model_name_or_path "$INIT")
  local arguments=(
    --cohort mr --num_subjects "$subjects" --cache_dir "$CACHE" --output_dir "$RUN" "${model[@]}"
    --max_train_steps "$steps" --train_batch_size "$batch" --learning_rate "${LEARNING_RATE:-4e-4}"
    --lr_scheduler cosine --lr_warmup_steps $((steps / 50)) --ema_decay 0.9995 --mixed_precision bf16
    --dataloader_num_workers "$workers" --checkpointing_steps "$every" --checkpoints_total_limit 2
    --logging_steps $((every / 2)) --validation_steps "$validate" --seed 0 --resume_from_checkpoint latest
  )
  if [[ $DEVICE == cpu ]]; then export ACCELERATE_USE_CPU=true; fi
  local status=0
  # Stopped on time; the next command goes on from the last checkpoint.
  timeout --signal=TERM --kill-after=20 "${TRAIN_SECONDS:-520}" \
    "$PYTHON" training_scripts/train_wavelet_diffusion.py "${arguments[@]}" || status=$?
  if ((status != 0 && status != 124 && status != 137 && status != 143)); then
    return "$status"
  fi
  export_weights
}

# Stages of a recipe for what is left of TRAIN_SECONDS; what is finished is skipped, what is not resumes.
#   run_stages RECIPE FOLDER STAGE...
run_stages() {
  local recipe=$1 run=$2 status=0 left stage
  export RUN=$run CACHE DEVICE SMALL PYTHON
  for stage in "${@:3}"; do
    [[ -e $run/$stage/model_index.json || -e $run/$stage/scheduler ]] && continue
    [[ -e $run/$stage/autoencoder_report.json && -e $run/$stage/config.json ]] && continue
    left=$((${TRAIN_SECONDS:-520} - SECONDS))
    ((left > 20)) || break
    timeout --signal=TERM --kill-after=20 "$left" bash "$recipe" "$stage" || status=$?
    ((status == 0)) || break
  done
  if ((status != 0 && status != 124 && status != 137 && status != 143)); then return "$status"; fi
}

# The stages of train_pvldm.sh, longer than on a CPU; GRIDS, if set, is inherited.
pvldm() {
  local run=${PVLDM_RUN:-runs/pvldm-cohort-64}
  export SUBJECTS=${SUBJECTS:-2000} PATCH_STEPS=${PATCH_STEPS:-8000} VOLUME_STEPS=${VOLUME_STEPS:-4000} EVERY=${EVERY:-500}
  export DIFFUSION_STEPS=${DIFFUSION_STEPS:-40000} WORKERS=${WORKERS:-8}
  run_stages benchmarks/train_pvldm.sh "$run" patch volume diffusion
  for stage in patch volume; do
    [[ -e $run/$stage/config.json ]] || continue
    cp "$run/$stage/config.json" "$OUT/vae_config.json"
    cp "$run/$stage/diffusion_pytorch_model.safetensors" "$OUT/vae.safetensors"
  done
  if compgen -G "$run/diffusion/checkpoint-*" >/dev/null; then
    "$PYTHON" benchmarks/export_checkpoint.py "$run/diffusion" "$OUT"
  fi
}

# The stages of train_informed_slice.sh, longer than on a CPU, and Make-A-Volume.
informed() {
  local run=${INFORMED_RUN:-runs/informed-slice-brain-64} stage
  export SUBJECTS=${SUBJECTS:-1000} WORKERS=${WORKERS:-8} EVERY=${EVERY:-500} AUTOENCODER_STEPS=${AUTOENCODER_STEPS:-6000}
  export SLICE_STEPS=${SLICE_STEPS:-15000} GENERATOR_STEPS=${GENERATOR_STEPS:-10000} VOLUME_STEPS=${VOLUME_STEPS:-8000}
  run_stages benchmarks/train_informed_slice.sh "$run" autoencoder slice generator volume baseline
  if compgen -G "$run/volume/checkpoint-*" >/dev/null; then
    "$PYTHON" benchmarks/export_checkpoint.py "$run/volume" "$OUT"
  fi
  for stage in volume baseline; do
    [[ -e $run/$stage/model_index.json ]] || continue
    "$PYTHON" benchmarks/export_pipeline.py "$run/$stage" "$OUT/informed-slice-$stage.tar"
  done
}

# train_slice_conditioned.sh, longer than on a CPU; it has one stage, whose folder is the run's.
slices() {
  local run=${SLICES_RUN:-runs/slice-brain-64}
  export SUBJECTS=${SUBJECTS:-2000} STEPS=${STEPS:-20000} BATCH=${BATCH:-8} WORKERS=${WORKERS:-8} EVERY=${EVERY:-500}
  run_stages benchmarks/train_slice_conditioned.sh "$run" .
  if compgen -G "$run/checkpoint-*" >/dev/null; then
    "$PYTHON" benchmarks/export_checkpoint.py "$run" "$OUT"
  fi
  if [[ -e $run/model_index.json ]]; then
    "$PYTHON" benchmarks/export_pipeline.py "$run" "$OUT/slice-brain-64.tar"
  fi
}

export_weights() {
  "$PYTHON" benchmarks/export_checkpoint.py "$RUN" "$OUT"
}

stats() {
  local latest arguments=(--dtype bfloat16 --ddpm --batch-size 16)
  latest=$(find "$RUN" -maxdepth 1 -name 'checkpoint-*' -printf '%f\n' | sort -t- -k2 -n | tail -1)
  [[ -n $SMALL ]] && arguments=(--steps 2 --num-samples 2 --num-heldout 3 --num-train 4 --max-pairs 1)
  "$PYTHON" benchmarks/model_statistics.py "$RUN/$latest" --device "$DEVICE" --samples runs/statistics \
    --cache-dir "$CACHE" --out "$OUT" "${arguments[@]}"
}

case ${1:-} in
  pack) pack ;;
  test) prepare && check ;;
  bench) prepare && bench ;;
  nearest) prepare && nearest ;;
  patch_volume) prepare && patch_volume ;;
  train) prepare && train ;;
  pvldm) prepare && pvldm ;;
  informed) prepare && informed ;;
  slices) prepare && slices ;;
  export) prepare && export_weights ;;
  stats) prepare && stats ;;
  *)
    sed -n '2,23p' "$0" | sed 's/^# \{0,1\}//'
    exit 2
    ;;
esac
