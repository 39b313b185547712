#!/usr/bin/env bash
# The recipe of model_cards/pvldm-cohort-64: simulated T1w heads and abdominal CT, on 64³ and 64x64x48, in three stages.
#
#   bash benchmarks/train_pvldm.sh [patch] [volume] [diffusion]     all three unless named; each resumes where it was
#
# Settings (environment): RUN=runs/pvldm-cohort-64, CACHE=runs/cohort, SUBJECTS=600 of each class, PATCH_STEPS=2000,
# VOLUME_STEPS=900, DIFFUSION_STEPS=6000, WORKERS=1, START=FOLDER (an autoencoder to start the patch stage from),
# GRIDS="64,64,64;64,64,48" as --grids takes them, the same for all three stages of a RUN; on a GPU also
# GRIDS="64,64,64;64,64,48;128,128,128", DEVICE=cuda or cpu, SMALL=1 for a dry run of a few steps.
set -euo pipefail
cd "$(dirname "$0")/.."

RUN=${RUN:-runs/pvldm-cohort-64}
PYTHON=${PYTHON:-python3}
if [[ -n ${SMALL:-} ]]; then
  SUBJECTS=20 PATCH_STEPS=2 VOLUME_STEPS=2 DIFFUSION_STEPS=2 EVERY=2
fi
[[ ${DEVICE:-cpu} == cpu ]] && export ACCELERATE_USE_CPU=true
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1

COMMON=(
  --cohort mr,ct --num_subjects "${SUBJECTS:-600}" --grids "${GRIDS:-64,64,64;64,64,48}"
  --cache_dir "${CACHE:-runs/cohort}"
  --lr_scheduler cosine --mixed_precision bf16 --dataloader_num_workers "${WORKERS:-1}" --seed 0
  --checkpointing_steps "${EVERY:-200}" --checkpoints_total_limit 1 --resume_from_checkpoint latest --logging_steps 50
)

# Everything learns, on patches of 16³: 4x, 4096 codes.
patch() {
  local model=(
    --patch_size 16 --block_out_channels 16,32,32 --latent_channels 8 --num_embeddings 4096
    --num_attention_heads 2 --attention_head_dim 16 --norm_num_groups 8
  )
  [[ -n ${START:-} ]] && model=(--pretrained_model_name_or_path "$START")
  "$PYTHON" training_scripts/train_patch_volume_autoencoder.py --stage patch "${COMMON[@]}" "${model[@]}" \
    --output_dir "$RUN/patch" --max_train_steps "${PATCH_STEPS:-2000}" --train_batch_size 6 --patches_per_volume 16 \
    --learning_rate 8e-4 --lr_warmup_steps 30 --num_held_out 16 \
    --adversarial_weight 0 --perceptual_weight 0
}

# The decoder learns to decode whole volumes; the perceptual loss begins here, its slices are larger.
volume() {
  "$PYTHON" training_scripts/train_patch_volume_autoencoder.py --stage volume "${COMMON[@]}" \
    --pretrained_model_name_or_path "$RUN/patch" --output_dir "$RUN/volume" --max_train_steps "${VOLUME_STEPS:-900}" \
    --train_batch_size 1 --learning_rate 4e-4 --lr_warmup_steps 30 --num_held_out 16 \
    --perceptual_weight 0.3 --perceptual_share 0.0625 --adversarial_weight 0
}

diffusion() {
  "$PYTHON" training_scripts/train_patch_volume_ldm.py "${COMMON[@]}" --vae "$RUN/volume" \
    --latents_dir "$RUN/latents" --output_dir "$RUN/diffusion" --max_train_steps "${DIFFUSION_STEPS:-6000}" \
    --block_out_channels 24,24,48,48 --attention_levels 2,3 --num_attention_heads 4 --attention_head_dim 16 \
    --norm_num_groups 8 --token_size 2 --sub_volume_size 4 --num_dit_heads 4 \
    --scalar_columns ventricle_volume_ml --scalar_dropout 0.1 --label_dropout 0.1 --prediction_type v_prediction \
    --loss_type l2 --train_batch_size 8 --learning_rate 8e-4 --lr_warmup_steps 100 --ema_decay 0.998 \
    ${SMALL:+--ignore_autoencoder_report}
}

(($#)) || set -- patch volume diffusion
for stage in "$@"; do "$stage"; done
