#!/usr/bin/env bash
# Few and many training subjects (cDPM's claim): slice-conditioned diffusion and the voxel-space 3D DDPM on simulated T1w
# heads at 32³, each with 500 and with 50 subjects, in about the same time of one CPU core.
#
#   bash benchmarks/train_small_sets.sh     each resumes where it was; then bench_slice_conditioned.py --also
#
# Settings (environment): RUN=runs/small-sets, CACHE=runs/cohort, SLICE_STEPS=900, VOXEL_STEPS=750, NUMBERS="500 50".
set -euo pipefail
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/small-sets}
PYTHON=${PYTHON:-python3}
[[ ${DEVICE:-cpu} == cpu ]] && export ACCELERATE_USE_CPU=true
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

COMMON=(
  --cohort mr --resolution 32 --cache_dir "${CACHE:-runs/cohort}" --train_batch_size 2 --prediction_type sample
  --layers_per_block 1 --norm_num_groups 16 --learning_rate 8e-4 --lr_scheduler cosine --lr_warmup_steps 100
  --ema_decay 0.998 --mixed_precision bf16 --dataloader_num_workers 0 --seed 0 --checkpointing_steps 200
  --checkpoints_total_limit 1 --resume_from_checkpoint latest --logging_steps 20
)

for number in ${NUMBERS:-500 50}; do
  "$PYTHON" training_scripts/train_slice_conditioned.py "${COMMON[@]}" --num_subjects "$number" \
    --output_dir "$RUN/slices-$number" --max_train_steps "${SLICE_STEPS:-900}" --block_out_channels 32,64,96,96 \
    --attention_levels 2,3 --pre_norm_residual --interpolate_known --slice_convolution --gap_share 0.35 --comb_share 0.35 --observed_share 0.7
  "$PYTHON" training_scripts/train_wavelet_diffusion.py "${COMMON[@]}" --num_subjects "$number" --wavelet none \
    --output_dir "$RUN/voxels-$number" --max_train_steps "${VOXEL_STEPS:-750}" --block_out_channels 32,64,80,80
done
