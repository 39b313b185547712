#!/usr/bin/env bash
# The recipe of model_cards/slice-brain-64: axial slices of simulated T1w heads on 64³, any from any others.
#
#   bash benchmarks/train_slice_conditioned.sh     resumes where it was
#
# Settings (environment): RUN=runs/slice-brain-64, CACHE=runs/cohort, SUBJECTS=1000, STEPS=13800, BATCH=2, WORKERS=1,
# DEVICE=cpu or cuda, SMALL=1 for a dry run of a few steps.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
if [[ -n ${SMALL:-} ]]; then
  SUBJECTS=20 STEPS=2 EVERY=2 RUN=${RUN:-runs/slice-brain-64-dry}
fi
[[ ${DEVICE:-cpu} == cpu ]] && export ACCELERATE_USE_CPU=true
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

"$PYTHON" training_scripts/train_slice_conditioned.py \
  --cohort mr --num_subjects "${SUBJECTS:-1000}" --resolution 64 --cache_dir "${CACHE:-runs/cohort}" \
  --output_dir "${RUN:-runs/slice-brain-64}" --max_train_steps "${STEPS:-13800}" --train_batch_size "${BATCH:-2}" \
  --block_out_channels 48,80,96 --layers_per_block 1 --attention_levels 1,2 --norm_num_groups 16 --patch_size 2 \
  --pre_norm_residual --interpolate_known --slice_convolution --gap_share 0.35 --comb_share 0.35 --observed_share 0.7 \
  --prediction_type sample --learning_rate 8e-4 --lr_scheduler cosine --lr_warmup_steps 100 --ema_decay 0.998 \
  --mixed_precision bf16 --dataloader_num_workers "${WORKERS:-1}" --seed 0 \
  --checkpointing_steps "${EVERY:-200}" --checkpoints_total_limit 1 --resume_from_checkpoint latest --logging_steps 50
